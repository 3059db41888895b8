"""The image stage: the ladder from a cache volume down to containerd's own pull.

    cached      every layer is on the node or on a cache volume: mounts only, no registry contact
    partial     only the layers that are missing or bad are pulled
    fallback    no layer was there: our own pull of all of them
    containerd  our plugin does not work: containerd's ordinary pull and its overlayfs snapshotter

One flight per image: copies that start together download once. A flight outlives the copy that
began it, since another one may wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from zeropull.containerd.adopt import adopt_image
from zeropull.containerd.client import ContainerdClient
from zeropull.controlapi.messages import ImageAssignment, ImagePath, NodeAssignment, VolumeMount
from zeropull.errors import ImageError, IntegrityError, NotFound, Unavailable, ZeropullError
from zeropull.nodeagent.disk import NodeDisk
from zeropull.nodeagent.failures import Failure, failure_of
from zeropull.nodeagent.images.catalog import Catalog, FoundLayer
from zeropull.nodeagent.images.documents import (
    ImageDocuments,
    pinned_name,
    registry_access,
)
from zeropull.nodeagent.images.image_on_node import ImageOnNode
from zeropull.nodeagent.images.layer_pull import USER_AGENT, LayerPull, directory_names
from zeropull.nodeagent.images.plain_pull import PlainPull
from zeropull.nodeagent.link_share import LinkShare
from zeropull.nodeagent.records import AgentRecords, CopyRecord
from zeropull.oci.images import ResolvedImage
from zeropull.registry.client import RegistryClient
from zeropull.resources.node import SNAPSHOTTER, NodeConfig
from zeropull.resources.stages import Stage, StageRecord
from zeropull.telemetry import get_logger

GENERATION_WAIT_S = 900.0  # the first pull of another node must be published by then
PLUGIN_PATIENCE_S = 5.0
PLUGIN_RETRY_S = 0.05
ADOPT_ATTEMPTS = 3  # each time the layers that the plugin does not take are pulled again
INTEGRITY_ATTEMPTS = 2  # bytes may be damaged on their way once, hardly twice
INTEGRITY_RETRY_S = 1.0

log = get_logger(__name__)


class PluginBroken(ZeropullError):
    """Our snapshotter does not do its work; containerd itself does. Never leaves this module."""


class NodeImages:
    """Makes images available on this node. `assignment` gives the newest one."""

    def __init__(
        self,
        config: NodeConfig,
        client: ContainerdClient,
        catalog: Catalog,
        records: AgentRecords,
        assignment: Callable[[], NodeAssignment | None],
        changed: asyncio.Condition,
    ) -> None:
        self.ready: dict[str, ImageOnNode] = {}
        self.failures: dict[str, Failure] = {}
        self.progress: dict[str, str] = {}
        self.paths: Counter[str] = Counter()  # how often each rung has brought an image
        self.fallbacks: Counter[str] = Counter()  # why it was not the first rung
        self.disk = NodeDisk(config, self._layers_in_use, catalog.forget)
        self.documents = ImageDocuments(records, catalog)
        self.link = LinkShare(config.model_link_share)
        self._client = client
        self._catalog = catalog
        self._assignment = assignment
        self._changed = changed
        tell = self.progress.__setitem__
        self._layer_pull = LayerPull(catalog, self.disk, self.link, tell)
        self._plain_pull = PlainPull(config, client, self.disk, self.link, tell)
        self._document_bytes = 0
        self._flights: dict[tuple[str, bool], asyncio.Task[ImageOnNode]] = {}
        self._spoiled: dict[str, str] = {}
        self._records = records
        self._uncached = records.load_uncached()

    @property
    def registry_bytes(self) -> int:
        """All that this agent has got from registries."""
        pulled = self._layer_pull.registry_bytes + self._plain_pull.registry_bytes
        return pulled + self._document_bytes

    async def ensure(self, image: ImageAssignment, *, plain: bool = False) -> ImageOnNode:
        """The image, ready to run. `plain`: containerd's ordinary way, whatever is assigned.

        A second call finds everything there and reports no byte.

        Raises:
            ZeropullError: as the registry, the image or the disk say; the cache never fails it.
        """
        key = (image.manifest_digest, plain)
        flight = self._flights.get(key)
        self._note_caching(image)
        if flight is None:
            flight = asyncio.create_task(self._walk(image, plain=plain))
            self._flights[key] = flight
            flight.add_done_callback(lambda done: self._landed(key, done))
        return await asyncio.shield(flight)

    def in_flight(self, image: ImageAssignment, *, plain: bool = False) -> bool:
        """Another copy has asked for it already and it is still on its way."""
        return (image.manifest_digest, plain) in self._flights

    async def close(self) -> None:
        """End the flights; what they have published stays."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    def remember(self, record: CopyRecord) -> None:
        """A copy that an earlier agent started runs on its image: it is ready, though this agent
        never brought it."""
        digest = record.assignment.image
        kept = self.documents.kept(digest)
        if digest in self.ready or kept is None:
            return
        stage = record.stages.get(Stage.IMAGE, StageRecord(Stage.IMAGE, 0.0))
        self.ready[digest] = ImageOnNode(
            manifest_digest=digest,
            name=record.image_name,
            snapshotter=record.snapshotter,
            config=kept.config,
            chain_ids=tuple(kept.chain_ids),
            path=stage.path or "",
            registry_bytes=stage.bytes_by_source.get("registry", 0),
            volume_metadata_bytes=stage.bytes_by_source.get("volume", 0),
            node_bytes=stage.bytes_by_source.get("node", 0),
            layers_from_cache=stage.layers_from_cache or 0,
        )

    async def recall(self, images: Iterable[ImageAssignment]) -> None:
        """Images that containerd pulled by itself for an earlier agent are ready for this one."""
        for image in images:
            if image.manifest_digest not in self.ready:
                found = await self._plain_pull.find(image)
                if found is not None:
                    self.ready[image.manifest_digest] = found

    def spoil(self, manifest_digest: str) -> None:
        """A layer of it turned out bad: before its next use containerd must let go of its
        snapshots, so that every layer is asked for anew."""
        known = self.ready.pop(manifest_digest, None)
        if known is not None:
            self._spoiled[manifest_digest] = known.name

    async def release_unused(self, wanted: Collection[str]) -> None:
        """Delete the image records of all other manifests: containerd's garbage collection takes
        their snapshots, and with them the mounts. The layers' files stay in the data cache, but
        for images that are not to be cached."""
        for record in await self._client.images.list():
            digest = record.name.partition("@")[2]
            flying = any(key[0] == digest for key in self._flights)
            if digest and digest not in wanted and not flying:
                log.info("image is released", image=record.name)
                self.ready.pop(digest, None)
                with contextlib.suppress(NotFound):
                    await self._client.images.delete(record.name, sync=True)
        for digest in self.failures.keys() - set(wanted):
            del self.failures[digest]
        for digest in self._uncached - set(wanted):
            await self._drop_uncached(digest)

    def _note_caching(self, image: ImageAssignment) -> None:
        known = image.manifest_digest in self._uncached
        if known is image.keep:
            self._uncached ^= {image.manifest_digest}
            self._records.save_uncached(self._uncached)

    async def _drop_uncached(self, manifest_digest: str) -> None:
        """With EnableCaching false an image goes when its last copy has gone; what another image
        needs of it stays."""
        in_use = await self._layers_in_use()
        layers = directory_names(self.documents.own_chain_ids(manifest_digest))
        if layers & in_use or any(key[0] == manifest_digest for key in self._flights):
            return  # of a container that is still being removed, say: the next round tries again
        log.info("image is not cached and goes", manifest_digest=manifest_digest)
        self.documents.forget(manifest_digest)
        self._uncached.discard(manifest_digest)
        self._records.save_uncached(self._uncached)
        await self.disk.remove(layers)

    def _landed(self, key: tuple[str, bool], flight: asyncio.Task[ImageOnNode]) -> None:
        self._flights.pop(key, None)
        self.progress.pop(key[0], None)
        if flight.cancelled():
            return
        error = flight.exception()
        if error is None:
            self.ready[key[0]] = flight.result()
            self.failures.pop(key[0], None)
            self.paths[flight.result().path] += 1
        elif isinstance(error, Exception):
            self.failures[key[0]] = failure_of(error, Stage.IMAGE)

    # ------------------------------------------------------------------ the ladder

    async def _walk(self, image: ImageAssignment, *, plain: bool) -> ImageOnNode:
        if plain or image.path is ImagePath.CONTAINERD:
            self.fallbacks["mount" if plain else "assigned"] += 1
            return await self._plain_pull.ensure(image)
        attempt = 1
        while True:
            try:
                return await self._make_available(image)
            except PluginBroken as error:
                log.warning(
                    "snapshotter does not work, containerd pulls by itself",
                    image=image.reference,
                    reason=str(error),
                )
                self.fallbacks["plugin"] += 1
                return await self._plain_pull.ensure(image)
            except IntegrityError as error:
                if attempt >= INTEGRITY_ATTEMPTS:
                    raise
                log.warning("damaged bytes, once more", image=image.reference, reason=str(error))
                attempt += 1
                await asyncio.sleep(INTEGRITY_RETRY_S)

    async def _make_available(self, image: ImageAssignment) -> ImageOnNode:
        await self._release(image.manifest_digest)
        if image.wait_for_generation:
            image = await self._wait_for_generation(image)
        resolved = await self.documents.resolve(image, self._volumes(image))
        registry_bytes = 0
        if resolved is None:
            async with RegistryClient(registry_access(image), user_agent=USER_AGENT) as registry:
                resolved = await registry.fetch_manifest_image(
                    image.reference, image.manifest_digest
                )
            registry_bytes = len(resolved.manifest) + len(resolved.config)
            self._document_bytes += registry_bytes
        self.documents.keep(resolved)
        resolved = dataclasses.replace(resolved, reference=pinned_name(image))
        first: dict[str, FoundLayer] = {}
        for attempt in range(ADOPT_ATTEMPTS):
            found = await self._catalog.link_layers(resolved.chain_ids, self._volumes(image))
            first = dict(found) if attempt == 0 else first
            registry_bytes += await self._layer_pull.pull_missing(image, resolved, found)
            refused = await self._adopt(resolved)
            if not refused:
                return self._outcome(image, resolved, first, registry_bytes)
            # The plugin checks each layer again before it mounts it: believe it, once.
            for chain_id in refused[:1]:
                first.pop(chain_id, None)
                self._catalog.drop(chain_id, "the snapshotter refuses it")
        raise PluginBroken(f"it does not take {image.reference} after {ADOPT_ATTEMPTS} attempts")

    async def _release(self, manifest_digest: str) -> None:
        """The image's containers are gone by now, or about to be: containerd's garbage collection
        takes each snapshot with its last user."""
        name = self._spoiled.get(manifest_digest)
        if name is None:
            return
        with contextlib.suppress(NotFound):
            await self._client.images.delete(name, sync=True)
        del self._spoiled[manifest_digest]

    async def _adopt(self, resolved: ResolvedImage) -> list[str]:
        deadline_s = time.monotonic() + PLUGIN_PATIENCE_S
        while True:
            try:
                return list(await adopt_image(self._client, SNAPSHOTTER, resolved))
            except ImageError:
                raise
            except ZeropullError as error:
                await self._client.version()  # containerd itself away is not the plugin's fault
                if not isinstance(error, Unavailable) or time.monotonic() >= deadline_s:
                    raise PluginBroken(str(error)) from error
            # It may only be on its way up, as on a node that has just been started.
            await asyncio.sleep(PLUGIN_RETRY_S)

    async def _wait_for_generation(self, image: ImageAssignment) -> ImageAssignment:
        """Until a volume has the image or nobody asks to wait any more; bounded."""
        newest = image
        self.progress[image.manifest_digest] = "another node pulls it for the image cache: waiting"
        try:
            async with asyncio.timeout(GENERATION_WAIT_S), self._changed:
                while True:
                    newest = self._newest(image)
                    here = await self.documents.resolve(newest, self._volumes(newest))
                    if not newest.wait_for_generation or here is not None:
                        return newest
                    await self._changed.wait()
        except TimeoutError:
            log.warning("the generation did not come, pulling", image=image.reference)
        return newest

    def _newest(self, image: ImageAssignment) -> ImageAssignment:
        assignment = self._assignment()
        for each in assignment.images if assignment else ():
            if each.manifest_digest == image.manifest_digest:
                return each
        return image

    def _volumes(self, image: ImageAssignment) -> tuple[VolumeMount, ...]:
        assignment = self._assignment()
        return assignment.volumes if assignment and image.path is ImagePath.AUTO else ()

    def _outcome(
        self,
        image: ImageAssignment,
        resolved: ResolvedImage,
        found: dict[str, FoundLayer],
        registry_bytes: int,
    ) -> ImageOnNode:
        total = len(resolved.chain_ids)
        path = "cached" if len(found) == total else "partial" if found else "fallback"
        if path != "cached":
            self.fallbacks[self._why_not_cached(image, resolved)] += 1
        outcome = ImageOnNode(
            manifest_digest=resolved.manifest_digest,
            name=resolved.reference,
            snapshotter=SNAPSHOTTER,
            config=resolved.config,
            chain_ids=tuple(resolved.chain_ids),
            path=path,
            registry_bytes=registry_bytes,
            volume_metadata_bytes=sum(f.metadata_bytes for f in found.values() if f.from_volume),
            node_bytes=sum(f.metadata_bytes for f in found.values() if not f.from_volume),
            layers_from_cache=len(found),
        )
        log.info("image is available", image=resolved.reference, path=path, detail=outcome.detail)
        return outcome

    def _why_not_cached(self, image: ImageAssignment, resolved: ResolvedImage) -> str:
        if image.path is not ImagePath.AUTO:
            return "assigned"
        if any(chain_id in self._catalog.dropped for chain_id in resolved.chain_ids):
            return "layer_damaged"
        volumes = self._volumes(image)
        if any(Path(volume.path) in self._catalog.damaged_volumes for volume in volumes):
            return "generation_damaged"
        return "layer_missing" if volumes else "no_generation"

    async def _layers_in_use(self) -> set[str]:
        """Directories of the layer store that must stay: mounted, wanted, or on their way."""
        assignment = self._assignment()
        digests = {image.manifest_digest for image in assignment.images} if assignment else set()
        digests |= {digest for digest, _ in self._flights} | self.ready.keys()
        chains = {chain for digest in digests for chain in self.documents.chain_ids(digest)}
        try:
            snapshots = await self._client.snapshots(SNAPSHOTTER).list()
        except Unavailable:  # nobody can tell what is mounted: all may be
            return {folder.name for folder in self._catalog.layers.iterdir()}
        for each in snapshots:  # one stands for all layers of an image
            if each.name.startswith("sha256:") and each.name not in chains:
                chains.update(await asyncio.to_thread(self._catalog.lineage, each.name))
        return directory_names(chains) | directory_names(self._layer_pull.under_way())
