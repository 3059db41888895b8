"""Builds, removes and purges the generations of image caches: their files and their records."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from pathlib import Path

from zeropull.errors import DiskFull, IntegrityError, NotFound, ZeropullError
from zeropull.imagecache.generations import GenerationStore, PublishedGeneration, Removed
from zeropull.imagecache.layout import generation_layer
from zeropull.layers.layout import layer_directory
from zeropull.layers.verify import verify_layer
from zeropull.linux.removal import try_remove_tree
from zeropull.oci.images import ResolvedImage
from zeropull.providers.protocol import Provider
from zeropull.reconcilers.imagecaches.planning import (
    Build,
    begin_build,
    plan_retry,
    with_generation,
    without_generations,
)
from zeropull.resources.image_caches import (
    CacheState,
    GenerationRecord,
    GenerationState,
    ImageCacheRecord,
)
from zeropull.statestore import Store
from zeropull.stopping import check_stop, run_stoppable
from zeropull.telemetry import get_logger

REBUILD_DELAY_S = 30.0  # after a build that failed for a passing reason

log = get_logger(__name__)


class GenerationBuilder:
    """`image` gives the manifest for (reference, manifest digest)."""

    def __init__(
        self,
        store: Store,
        provider: Provider,
        generations: GenerationStore,
        image: Callable[[str, str], Awaitable[ResolvedImage]],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._provider = provider
        self._generations = generations
        self._image_of = image
        self._clock = clock
        self._not_before_s: dict[str, float] = {}
        self._suspects: dict[str, set[str]] = {}

    def may_build(self, uid: str, now_s: float) -> bool:
        """False for a while after a build that failed."""
        return now_s >= self._not_before_s.get(uid, 0.0)

    def suspects(self, instance_id: str) -> frozenset[str]:
        """Chain IDs of layers that were damaged when they were collected from the node."""
        return frozenset(self._suspects.get(instance_id, ()))

    def forget_all_but(self, instance_ids: Collection[str]) -> None:
        for instance_id in self._suspects.keys() - instance_ids:
            del self._suspects[instance_id]

    async def build(self, uid: str, build: Build) -> None:
        record = self._store.require(ImageCacheRecord, uid).document
        record, building = begin_build(record, build.images, self._clock())
        number = building.number
        self._store.put(record)
        try:
            images = [await self._image_of(ref, digest) for digest, ref in build.images.items()]
            published = await self._publish(uid, number, record, build, images)
        except DiskFull as error:
            save_generation(self._store, uid, plan_retry(building, self._clock(), error.reason))
            log.warning("image cache refused", endpoint=record.endpoint, reason=error.reason)
            return
        except ZeropullError as error:
            forget_generations(self._store, uid, {number})
            self._not_before_s[uid] = self._clock() + REBUILD_DELAY_S
            log.warning("image cache not built", endpoint=record.endpoint, reason=error.reason)
            return
        if published.number != number:
            forget_generations(
                self._store, uid, {number}
            )  # published before a crash, or numbers of a lost record
        size_bytes = await asyncio.to_thread(self._generations.used_bytes, uid)
        save_generation(
            self._store,
            uid,
            replace(
                building,
                number=published.number,
                state=GenerationState.PUBLISHED,
                path=str(published.path),
                index_digest=published.index_digest,
                size_bytes=size_bytes,
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
                        if source.is_dir() and await self._link(source, chain_id, into):
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

    async def _link(self, source: Path, chain_id: str, into: Path) -> bool:
        """Take a layer of a damaged generation, if it is a good one."""
        await run_stoppable(lambda stop: link_layer(source, into, stop))
        try:
            await self._verify(chain_id, into)
        except (IntegrityError, NotFound) as error:
            log.warning("layer of a damaged generation not taken", reason=error.reason)
            return False
        return True

    async def _collect(self, instance_ids: tuple[str, ...], chain_id: str, into: Path) -> None:
        """Bring the layer from the first node that has a good copy. The nodes with a bad one are
        suspected from now on: they verify theirs and pull it again.

        Raises:
            IntegrityError: each node that has the layer has a bad copy.
            NotFound: no node has it.
        """
        refused = []
        for instance_id in instance_ids:
            try:
                await self._provider.collect_layer(instance_id, chain_id, into)
                await self._verify(chain_id, into)
            except NotFound:
                continue
            except IntegrityError as error:
                log.warning("layer of a node not taken", node=instance_id, reason=error.reason)
                refused.append(f"{instance_id}: {error}")
                self._suspects.setdefault(instance_id, set()).add(chain_id)
                continue
            self._suspects.get(instance_id, set()).discard(chain_id)
            return
        if refused:
            raise IntegrityError(
                f"layer {chain_id} is damaged on every node that has it ({'; '.join(refused)}): "
                "they pull it again"
            )
        raise NotFound(f"no node of the endpoint has pulled layer {chain_id}")

    async def _verify(self, chain_id: str, into: Path) -> None:
        """What is not good is removed: it shares its blocks on the disk with what it was linked
        from, and would share them with every generation that is built of it."""
        try:
            await run_stoppable(lambda stop: verify_layer(into, chain_id, stop))
        except (IntegrityError, NotFound):
            await asyncio.to_thread(try_remove_tree, into)
            raise

    async def remove(self, uid: str, numbers: tuple[int, ...]) -> None:
        for number in numbers:
            gone = await self._drop(uid, number)
            forget_generations(self._store, uid, {number})
            log.info(
                "generation removed", endpoint_uid=uid, generation=number, freed_bytes=gone.bytes
            )

    async def purge(self, record: ImageCacheRecord) -> None:
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
            ),
        )
        self._not_before_s.pop(uid, None)
        log.info("image cache purged", endpoint=record.endpoint, freed_bytes=gone.bytes)


def save_generation(store: Store, uid: str, generation: GenerationRecord) -> None:
    """Unless the cache's record has gone meanwhile."""
    if store.get(ImageCacheRecord, uid) is not None:
        store.update(ImageCacheRecord, uid, lambda r: with_generation(r, generation))


def forget_generations(store: Store, uid: str, numbers: set[int]) -> None:
    if store.get(ImageCacheRecord, uid) is not None:
        store.update(ImageCacheRecord, uid, lambda r: without_generations(r, numbers))


def link_layer(source: Path, into: Path, stop: threading.Event) -> None:
    """Hard links of a layer's files in the new directory `into`, on the same disk."""
    into.mkdir(parents=True)
    for file in source.iterdir():
        check_stop(stop)
        (into / file.name).hardlink_to(file)
