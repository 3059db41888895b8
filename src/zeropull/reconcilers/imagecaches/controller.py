"""Carries out the plans for image caches: builds, attaches, removes and purges generations."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.messages import CopyState, ImagePath
from zeropull.errors import DiskFull, NotFound, ZeropullError
from zeropull.imagecache.generations import GenerationStore, PublishedGeneration, Removed
from zeropull.imagecache.layout import generation_layer
from zeropull.layers.layout import layer_directory
from zeropull.oci.images import ResolvedImage
from zeropull.providers.protocol import Provider, Volume
from zeropull.reconcilers.components.slots import component_images
from zeropull.reconcilers.endpoint_view import View
from zeropull.reconcilers.imagecaches.planning import (
    Build,
    CachePlan,
    CacheView,
    begin_build,
    is_damage_of,
    plan_cache,
    plan_retry,
    with_generation,
    without_generations,
)
from zeropull.resources.endpoints import EndpointStatus
from zeropull.resources.image_caches import (
    CacheState,
    GenerationRecord,
    GenerationState,
    ImageCacheRecord,
)
from zeropull.resources.instances import AttachedVolume, Instance, InstanceState
from zeropull.statestore import Store
from zeropull.stopping import check_stop, run_stoppable
from zeropull.tasks import TaskSet
from zeropull.telemetry import get_logger

MAX_TASKS = 1000  # at the same time
REBUILD_DELAY_S = 30.0  # after a build that failed for a passing reason
PROFILE_INTERVAL_S = 2.0  # between two looks for a start profile that a node has recorded
PURGED_RECORDS = 100  # proofs of purges that are kept

log = get_logger(__name__)


class CacheController:
    """One for all endpoints; `reconcile` never waits, its effects run beside it."""

    def __init__(
        self,
        store: Store,
        exchange: Exchange,
        provider: Provider,
        generations: GenerationStore,
        *,
        image: Callable[[str, str], Awaitable[ResolvedImage]],
        has_accelerators: Callable[[str], bool],
        enabled: bool,
        all_instance_types: bool,
        clock: Callable[[], float],
    ) -> None:
        """`image` gives the manifest for (reference, manifest digest)."""
        self._store = store
        self._exchange = exchange
        self._provider = provider
        self._generations = generations
        self._image = image
        self._has_accelerators = has_accelerators
        self._enabled = enabled
        self._all_instance_types = all_instance_types
        self._clock = clock
        self._tasks = TaskSet[str, None]("image caches", limit=MAX_TASKS, on_end=self._finished)
        self._pullers: dict[str, dict[str, str]] = {}
        self._waits: dict[str, frozenset[str]] = {}
        self._not_before_s: dict[str, float] = {}
        self._unattachable: set[str] = set()
        self._profiled: set[tuple[str, str]] = set()  # path of the generation, manifest digest
        self._profiles_not_before_s: dict[str, float] = {}

    async def close(self) -> None:
        await self._tasks.close()

    # ---------------------------------------------------------------------- what others ask

    def volumes_for(self, instance: Instance) -> tuple[Volume, ...]:
        """What a new launch gets: the newest generation, if there is one."""
        stored = self._store.get(ImageCacheRecord, instance.endpoint_uid)
        newest = stored.document.newest_published if stored else None
        if newest is None:
            return ()
        return (Volume(newest.number, Path(newest.path), newest.index_digest),)

    def waits_for(self, instance: Instance) -> frozenset[str]:
        """Manifest digests that another node pulls for the cache."""
        return self._waits.get(instance.instance_id, frozenset())

    def has_files(self, endpoint_uid: str) -> bool:
        stored = self._store.get(ImageCacheRecord, endpoint_uid)
        return stored is not None and stored.document.state is not CacheState.PURGED

    # ---------------------------------------------------------------------- one round

    def reconcile(self, views: list[View], now_s: float) -> None:
        """One round over the caches of all endpoints."""
        by_uid = {view.endpoint.uid: view for view in views}
        self._waits = {}
        for view in views:
            if view.endpoint.status not in (EndpointStatus.DELETING, EndpointStatus.FAILED):
                self._reconcile_endpoint(view, now_s)
            elif (build := self._tasks.get(f"build {view.endpoint.uid}")) is not None:
                build.cancel()  # its purge has only to wait for the instances
        for stored in self._store.select(ImageCacheRecord):
            record = stored.document
            owner = by_uid.get(record.endpoint_uid)
            if record.state is CacheState.PURGED:
                continue
            leaving = owner is None or (
                owner.endpoint.status in (EndpointStatus.DELETING, EndpointStatus.FAILED)
                and not owner.instances
            )
            if leaving:
                self._start(f"purge {record.endpoint_uid}", self._purge(record))
        self._unattachable &= {i.instance_id for view in views for i in view.instances}
        self._forget_old_purges()

    def _reconcile_endpoint(self, view: View, now_s: float) -> None:
        wanted = self._wanted(view)
        uid = view.endpoint.uid
        stored = self._store.get(ImageCacheRecord, uid)
        if stored is None and not wanted:
            return
        before = (
            stored.document
            if stored is not None and stored.document.state is not CacheState.PURGED
            else self._new_record(view, now_s)
        )
        cache_view = self._observe(view, before, wanted, now_s)
        plan = plan_cache(cache_view)
        record = replace(plan.record, wanted_images=tuple(sorted(wanted)))
        if stored is None or record != stored.document:
            self._store.put(record)
        self._pullers[uid] = dict(plan.pullers)
        self._waits.update(plan.waits)
        self._act(view, plan, record, now_s)

    def _act(self, view: View, plan: CachePlan, record: ImageCacheRecord, now_s: float) -> None:
        uid = view.endpoint.uid
        if plan.build is not None and now_s >= self._not_before_s.get(uid, 0.0):
            log.info("image cache build begins", endpoint=record.endpoint, reason=plan.build.reason)
            self._start(f"build {uid}", self._build(uid, plan.build))
        newest = record.newest_published
        if newest is not None:
            for instance_id in plan.attach:
                self._start(f"attach {instance_id}", self._attach(instance_id, newest))
            self._look_for_profiles(view, newest, now_s)
        if plan.remove and f"build {uid}" not in self._tasks:
            self._start(f"remove {uid}", self._remove(uid, plan.remove))

    def _look_for_profiles(self, view: View, newest: GenerationRecord, now_s: float) -> None:
        """Nodes record the first start of an image; what they have goes beside the generation."""
        uid = view.endpoint.uid
        sought = [d for d in newest.images if (newest.path, d) not in self._profiled]
        if not sought or now_s < self._profiles_not_before_s.get(uid, 0.0):
            return
        healthy = [
            instance.instance_id
            for instance in view.instances
            if (received := self._exchange.nodes.get(instance.instance_id)) is not None
            and any(copy.state is CopyState.HEALTHY for copy in received.report.copies)
        ]
        if healthy:
            self._profiles_not_before_s[uid] = now_s + PROFILE_INTERVAL_S
            self._start(f"profiles {uid}", self._bring_profiles(uid, newest, sought, healthy))

    def _wanted(self, view: View) -> dict[str, str]:
        wanted: dict[str, str] = {}
        if not self._enabled:
            return wanted
        for deployment in (view.endpoint.current, view.endpoint.pending):
            for variant in deployment.variants if deployment else ():
                if self._all_instance_types or self._has_accelerators(variant.spec.instance_type):
                    wanted.update({i.manifest_digest: i.reference for i in variant.images})
                    wanted.update(component_images(view.components))
        return wanted

    def _observe(
        self, view: View, record: ImageCacheRecord, wanted: dict[str, str], now_s: float
    ) -> CacheView:
        uses: dict[str, frozenset[str]] = {}
        complete: dict[str, frozenset[str]] = {}
        failed: dict[str, frozenset[str]] = {}
        dropped: set[str] = set()
        bad: set[str] = set()
        newest = record.newest_published
        for instance in view.instances:
            name = instance.instance_id
            uses[name] = frozenset(c.manifest_digest for c in view.copies_on(instance))
            received = self._exchange.nodes.get(name)
            if received is None:
                continue
            images = received.report.images
            complete[name] = frozenset(i.manifest_digest for i in images if i.complete)
            failed[name] = frozenset(
                i.manifest_digest
                for i in images
                if i.failure is not None or (i.path == ImagePath.CONTAINERD and not i.complete)
            )
            bad.update(chain for i in images for chain in i.dropped_layers)
            if newest and is_damage_of(newest, instance):
                dropped.update(chain for i in images for chain in i.dropped_layers)
        return CacheView(
            record=record,
            wanted=wanted,
            now_s=now_s,
            instances=tuple(i for i in view.instances if i.instance_id not in view.lost),
            uses=uses,
            complete=complete,
            failed=failed,
            dropped=frozenset(dropped),
            bad_layers=frozenset(bad),
            unattachable=frozenset(self._unattachable),
            before=self._pullers.get(view.endpoint.uid, {}),
            is_building=f"build {view.endpoint.uid}" in self._tasks,
        )

    def _new_record(self, view: View, now_s: float) -> ImageCacheRecord:
        return ImageCacheRecord(
            endpoint_uid=view.endpoint.uid,
            account=view.endpoint.account,
            endpoint=view.endpoint.name,
            state=CacheState.ACTIVE,
            created_s=now_s,
        )

    # ---------------------------------------------------------------------- effects

    async def _build(self, uid: str, build: Build) -> None:
        record = self._store.require(ImageCacheRecord, uid).document
        builder = build.sources[0] if build.sources else None
        record, building = begin_build(record, build.images, self._clock(), builder)
        number = building.number
        self._store.put(record)
        try:
            images = [await self._image(ref, digest) for digest, ref in build.images.items()]
            published = await self._publish(uid, number, record, build, images)
        except DiskFull as error:
            self._save(uid, plan_retry(building, self._clock(), error.reason))
            log.warning("image cache refused", endpoint=record.endpoint, reason=error.reason)
            return
        except ZeropullError as error:
            self._forget(uid, {number})
            self._not_before_s[uid] = self._clock() + REBUILD_DELAY_S
            log.warning("image cache not built", endpoint=record.endpoint, reason=error.reason)
            return
        if published.number != number:
            self._forget(uid, {number})  # published before a crash, or numbers of a lost record
        size_bytes = await asyncio.to_thread(self._generations.used_bytes, uid)
        self._save(
            uid,
            replace(
                building,
                number=published.number,
                state=GenerationState.PUBLISHED,
                path=str(published.path),
                index_digest=published.index_digest,
                size_bytes=size_bytes,
                published_s=self._clock(),
                message="",
                refusals=0,
            ),
        )
        log.info(
            "image cache published",
            endpoint=record.endpoint,
            generation=published.number,
            images=len(build.images),
            size_bytes=size_bytes,
        )

    async def _publish(
        self,
        uid: str,
        number: int,
        record: ImageCacheRecord,
        build: Build,
        images: list[ResolvedImage],
    ) -> PublishedGeneration:
        """Collect what no good generation has, and publish."""
        store = self._generations
        damaged = [g for g in record.generations if g.state is GenerationState.CONDEMNED]
        damaged = damaged if record.newest_published is None else []
        chains = list(dict.fromkeys(c for image in images for c in image.chain_ids))
        with store.staging(uid) as staging:
            layers: dict[str, Path] = {}
            for chain_id in chains:
                into = layer_directory(staging, chain_id)
                if damaged and chain_id not in build.bad_layers:
                    for generation in damaged:
                        source = generation_layer(Path(generation.path), chain_id)
                        if source.is_dir():
                            await self._link(source, into)
                            layers[chain_id] = into
                            break
                if chain_id in layers:
                    continue
                if not damaged and await asyncio.to_thread(store.has_layer, uid, chain_id):
                    continue
                await self._collect(build.sources, chain_id, into)
                layers[chain_id] = into
            # A damaged generation must not be found, nor give layers, any more. Nodes that have
            # it mounted keep its files until they unmount.
            for generation in damaged:
                await self._drop(uid, generation.number)
            created_s = self._clock()
            return await run_stoppable(
                lambda stop: store.build(
                    uid, images, layers, created_at=created_s, number=number, stop=stop
                )
            )

    async def _drop(self, uid: str, number: int) -> Removed:
        return await run_stoppable(lambda _: self._generations.remove(uid, number))

    async def _link(self, source: Path, into: Path) -> None:
        await run_stoppable(lambda stop: link_layer(source, into, stop))

    async def _collect(self, instance_ids: tuple[str, ...], chain_id: str, into: Path) -> None:
        for instance_id in instance_ids:
            try:
                await self._provider.collect_layer(instance_id, chain_id, into)
                return
            except NotFound:
                continue
        raise NotFound(f"no node of the endpoint has pulled layer {chain_id}")

    async def _bring_profiles(
        self, uid: str, generation: GenerationRecord, digests: list[str], instance_ids: list[str]
    ) -> None:
        for digest in digests:
            known = await asyncio.to_thread(self._generations.has_profile, uid, digest)
            for instance_id in () if known else instance_ids:
                try:
                    content = await self._provider.collect_profile(instance_id, digest)
                    if content is None:
                        continue
                    known = await asyncio.to_thread(
                        self._generations.keep_profile, uid, digest, content
                    )
                except (ZeropullError, OSError) as error:
                    log.warning(
                        "start profile not taken", instance_id=instance_id, reason=str(error)
                    )
                    continue
                log.info("start profile kept", endpoint_uid=uid, manifest=digest)
                break
            if known:
                self._profiled.add((generation.path, digest))

    async def _attach(self, instance_id: str, generation: GenerationRecord) -> None:
        volume = Volume(generation.number, Path(generation.path), generation.index_digest)
        try:
            path = await self._provider.attach(instance_id, volume)
        except ZeropullError as error:
            self._unattachable.add(instance_id)  # it pulls for itself
            log.warning("generation not attached", instance_id=instance_id, reason=error.reason)
            return
        if self._store.get(Instance, instance_id) is None:
            return
        attached = AttachedVolume(generation.number, path, generation.index_digest)

        def with_volume(instance: Instance) -> Instance:
            others = tuple(v for v in instance.volumes if v.generation != generation.number)
            return replace(instance, volumes=(*others, attached))

        instance = self._store.update(Instance, instance_id, with_volume)
        if instance.state is InstanceState.RUNNING:
            log.info("generation attached", instance_id=instance_id, generation=generation.number)
        self._exchange.reported.set()

    async def _remove(self, uid: str, numbers: tuple[int, ...]) -> None:
        for number in numbers:
            gone = await self._drop(uid, number)
            self._forget(uid, {number})
            log.info(
                "generation removed", endpoint_uid=uid, generation=number, freed_bytes=gone.bytes
            )

    async def _purge(self, record: ImageCacheRecord) -> None:
        uid = record.endpoint_uid
        self._store.update(
            ImageCacheRecord,
            uid,
            lambda r: replace(
                r,
                state=CacheState.PURGING,
                purge_wanted_s=r.purge_wanted_s or self._clock(),
            ),
        )
        await self._tasks.cancel(f"build {uid}")
        gone = await asyncio.to_thread(self._generations.purge, uid)
        self._store.update(
            ImageCacheRecord,
            uid,
            lambda r: replace(
                r,
                state=CacheState.PURGED,
                purged_s=self._clock(),
                freed_bytes=r.freed_bytes + gone.bytes,
                generations=(),
                wanted_images=(),
            ),
        )
        self._pullers.pop(uid, None)
        self._not_before_s.pop(uid, None)
        self._profiles_not_before_s.pop(uid, None)
        self._profiled = {each for each in self._profiled if f"/{uid}/" not in each[0]}
        log.info("image cache purged", endpoint=record.endpoint, freed_bytes=gone.bytes)
        self._exchange.reported.set()

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        if name in self._tasks or self._tasks.is_full:
            work.close()
            return  # when too many run, the next round asks again
        self._tasks.start(name, work)

    def _finished(self, name: str, error: BaseException | None) -> None:
        if error is not None:
            log.error("image cache effect failed", effect=name, error=str(error))
            return  # the next round tries again: at once would be without a pause
        self._exchange.reported.set()

    def _save(self, uid: str, generation: GenerationRecord) -> None:
        if self._store.get(ImageCacheRecord, uid) is not None:
            self._store.update(ImageCacheRecord, uid, lambda r: with_generation(r, generation))

    def _forget(self, uid: str, numbers: set[int]) -> None:
        if self._store.get(ImageCacheRecord, uid) is not None:
            self._store.update(ImageCacheRecord, uid, lambda r: without_generations(r, numbers))

    def _forget_old_purges(self) -> None:
        purged = [
            s.document
            for s in self._store.select(ImageCacheRecord)
            if s.document.state is CacheState.PURGED
        ]
        for record in sorted(purged, key=lambda r: r.purged_s or 0.0)[:-PURGED_RECORDS]:
            self._store.delete(ImageCacheRecord, record.key)


def link_layer(source: Path, into: Path, stop: threading.Event) -> None:
    """Hard links of a layer's files in the new directory `into`, on the same disk."""
    into.mkdir(parents=True)
    for file in source.iterdir():
        check_stop(stop)
        (into / file.name).hardlink_to(file)
