"""Carries out the plans for image caches: builds, attaches, removes and purges generations."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Container, Coroutine
from pathlib import Path
from typing import Any

from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.messages import CopyState, ImagePath
from zeropull.imagecache.generations import GenerationStore
from zeropull.oci.images import ResolvedImage
from zeropull.providers.protocol import Provider, Volume
from zeropull.reconcilers.components.slots import cached_images, component_images
from zeropull.reconcilers.endpoint_view import View
from zeropull.reconcilers.imagecaches.building import GenerationBuilder
from zeropull.reconcilers.imagecaches.planning import (
    CachePlan,
    CacheView,
    is_damage_of,
    plan_cache,
)
from zeropull.reconcilers.imagecaches.profiles import ProfileKeeper
from zeropull.reconcilers.imagecaches.volumes import Volumes
from zeropull.resources.endpoints import EndpointStatus
from zeropull.resources.image_caches import (
    CacheState,
    GenerationRecord,
    ImageCacheRecord,
)
from zeropull.resources.instances import Instance
from zeropull.statestore import Store
from zeropull.statestore.cached_kind import CachedKind
from zeropull.tasks import TaskSet
from zeropull.telemetry import get_logger

MAX_TASKS = 1000  # at the same time
REBUILD_DELAY_S = 30.0  # after a build that failed for a passing reason
PROFILE_INTERVAL_S = 2.0  # between two looks for a start profile that a node has recorded
PROFILES_S = 600.0  # profiles of a generation are looked for all the time for so long
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
        self._has_accelerators = has_accelerators
        self._enabled = enabled
        self._all_instance_types = all_instance_types
        self._clock = clock
        self._tasks = TaskSet[str, None]("image caches", limit=MAX_TASKS, on_end=self._finished)
        self._pullers: dict[str, dict[str, str]] = {}
        self._waits: dict[str, frozenset[str]] = {}
        self._records = CachedKind(store, ImageCacheRecord)
        self._unsettled: set[str] = set()  # endpoints whose cache has something under way
        self._builder = GenerationBuilder(store, provider, generations, image, clock)
        self._volumes = Volumes(store, exchange, provider, clock)
        self._profiles = ProfileKeeper(provider, generations)

    async def close(self) -> None:
        await self._tasks.close()

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

    def suspects_of(self, instance: Instance) -> frozenset[str]:
        """Chain IDs of layers that were damaged when they were collected from the node."""
        return self._builder.suspects(instance.instance_id)

    def has_files(self, endpoint_uid: str) -> bool:
        stored = self._store.get(ImageCacheRecord, endpoint_uid)
        return stored is not None and stored.document.state is not CacheState.PURGED

    def is_settled(self, endpoint_uid: str) -> bool:
        """Whether nothing is to happen to the endpoint's cache until something changes."""
        return endpoint_uid not in self._unsettled

    def reconcile(
        self, views: list[View], now_s: float, others: Container[str] | None = ()
    ) -> None:
        """One round over the caches of these endpoints. `others`: endpoints that are there and not
        looked at now, by uid; caches of all but these and those are removed. None: it is not known
        yet which are there, and no cache is removed."""
        by_uid = {view.endpoint.uid: view for view in views}
        for view in views:
            self._unsettled.add(view.endpoint.uid)
            for instance in view.instances:
                self._waits.pop(instance.instance_id, None)
            if view.endpoint.status not in (EndpointStatus.DELETING, EndpointStatus.FAILED):
                try:
                    self._reconcile_endpoint(view, now_s)
                except Exception as error:  # the other endpoints' caches go on
                    log.error(
                        "image cache not reconciled",
                        endpoint=view.endpoint.name,
                        error=str(error),
                        exc_info=error,
                    )
            elif (build := self._tasks.get(f"build {view.endpoint.uid}")) is not None:
                build.cancel()  # its purge has only to wait for the instances
            elif not self.has_files(view.endpoint.uid):
                self._unsettled.discard(view.endpoint.uid)
        for record in self._records.all() if others is not None else ():
            owner = by_uid.get(record.endpoint_uid)
            if record.state is CacheState.PURGED or record.endpoint_uid in (others or ()):
                continue
            leaving = owner is None or (
                owner.endpoint.status in (EndpointStatus.DELETING, EndpointStatus.FAILED)
                and not owner.instances
            )
            if leaving:
                self._start(f"purge {record.endpoint_uid}", self._purge(record))
        self._forget_old_purges()

    def forget_all_but(self, instance_ids: Collection[str], uids: Container[str]) -> None:
        """What is kept of instances and endpoints that are gone."""
        self._volumes.forget_all_but(instance_ids)
        self._builder.forget_all_but(instance_ids)
        for instance_id in self._waits.keys() - set(instance_ids):
            del self._waits[instance_id]
        self._unsettled = {uid for uid in self._unsettled if uid in uids}

    def _reconcile_endpoint(self, view: View, now_s: float) -> None:
        wanted = self._wanted(view)
        uid = view.endpoint.uid
        stored = self._store.get(ImageCacheRecord, uid)
        if stored is None and not wanted:
            self._unsettled.discard(uid)
            return
        before = (
            stored.document
            if stored is not None and stored.document.state is not CacheState.PURGED
            else _new_record(view, now_s)
        )
        cache_view = self._observe(view, before, wanted, now_s)
        plan = plan_cache(cache_view)
        record = plan.record
        if stored is None or record != stored.document:
            self._store.put(record)
        self._pullers[uid] = dict(plan.pullers)
        self._waits.update(plan.waits)
        self._act(view, plan, record, now_s)
        if not self._is_under_way(view, plan, record, now_s):
            self._unsettled.discard(uid)

    def _is_under_way(
        self, view: View, plan: CachePlan, record: ImageCacheRecord, now_s: float
    ) -> bool:
        uid = view.endpoint.uid
        names = [f"{what} {uid}" for what in ("build", "remove", "purge", "profiles")]
        names += [
            f"{what} {i.instance_id}" for what in ("attach", "detach") for i in view.instances
        ]
        if plan.build or plan.attach or plan.leaving or plan.remove or plan.waits or plan.pullers:
            return True
        if any(name in self._tasks for name in names):
            return True
        if any(volume.leaving for i in view.instances for volume in i.volumes):
            return True
        newest = record.newest_published
        is_new = newest is not None and 0 <= now_s - newest.created_s < PROFILES_S
        return is_new and newest is not None and self._profiles.lacks(newest)

    def _act(self, view: View, plan: CachePlan, record: ImageCacheRecord, now_s: float) -> None:
        uid = view.endpoint.uid
        if plan.build is not None and self._builder.may_build(uid, now_s):
            log.info("image cache build begins", endpoint=record.endpoint, reason=plan.build.reason)
            self._start(f"build {uid}", self._builder.build(uid, plan.build))
        self._volumes.mark(view.instances, plan.leaving)
        for instance in view.instances:
            gone = self._volumes.to_detach(instance, now_s)
            if gone:
                name = f"detach {instance.instance_id}"
                self._start(name, self._volumes.detach(instance.instance_id, gone))
        newest = record.newest_published
        if newest is not None:
            for instance_id in plan.attach:
                self._start(f"attach {instance_id}", self._volumes.attach(instance_id, newest))
            self._look_for_profiles(view, newest, now_s)
        if plan.remove and f"build {uid}" not in self._tasks:
            self._start(f"remove {uid}", self._builder.remove(uid, plan.remove))

    def _look_for_profiles(self, view: View, newest: GenerationRecord, now_s: float) -> None:
        uid = view.endpoint.uid
        sought = self._profiles.sought(uid, newest, now_s)
        healthy = [
            instance.instance_id
            for instance in (view.instances if sought else ())
            if (received := self._exchange.nodes.get(instance.instance_id)) is not None
            and any(copy.state is CopyState.HEALTHY for copy in received.report.copies)
        ]
        if healthy:
            self._profiles.look_again_after(uid, now_s)
            self._start(f"profiles {uid}", self._profiles.bring(uid, newest, sought, healthy))

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
            kept=frozenset(cached_images(view.components)),
            complete=complete,
            failed=failed,
            dropped=frozenset(dropped),
            bad_layers=frozenset(bad),
            unattachable=frozenset(self._volumes.unattachable),
            before=self._pullers.get(view.endpoint.uid, {}),
            is_building=f"build {view.endpoint.uid}" in self._tasks,
        )

    async def _purge(self, record: ImageCacheRecord) -> None:
        uid = record.endpoint_uid
        await self._tasks.cancel(f"build {uid}")
        await self._builder.purge(record)
        self._pullers.pop(uid, None)
        self._profiles.forget(uid)
        self._exchange.note_progress()

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        if name in self._tasks or self._tasks.is_full:
            work.close()
            return  # when too many run, the next round asks again
        self._tasks.start(name, work)

    def _finished(self, name: str, error: BaseException | None) -> None:
        if error is not None:
            log.error("image cache effect failed", effect=name, error=str(error))
            return  # the next round tries again: at once would be without a pause
        self._exchange.note_progress()

    def _forget_old_purges(self) -> None:
        purged = [each for each in self._records.all() if each.state is CacheState.PURGED]
        for record in sorted(purged, key=lambda r: r.purged_s or 0.0)[:-PURGED_RECORDS]:
            self._store.delete(ImageCacheRecord, record.key)


def _new_record(view: View, now_s: float) -> ImageCacheRecord:
    return ImageCacheRecord(
        endpoint_uid=view.endpoint.uid,
        account=view.endpoint.account,
        endpoint=view.endpoint.name,
        state=CacheState.ACTIVE,
        created_s=now_s,
    )
