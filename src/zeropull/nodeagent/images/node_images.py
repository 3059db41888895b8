"""The images of this node: which are ready, which are on their way, which may go.

One flight per image: copies that start together download once. A flight outlives the copy that
began it, since another one may wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from zeropull.containerd.client import ContainerdClient
from zeropull.controlapi.messages import ImageAssignment, NodeAssignment
from zeropull.errors import NotFound, Unavailable
from zeropull.nodeagent.disk import NodeDisk
from zeropull.nodeagent.failures import Failure, failure_of
from zeropull.nodeagent.images.arriving_volumes import ArrivingVolumes
from zeropull.nodeagent.images.catalog import Catalog
from zeropull.nodeagent.images.documents import ImageDocuments
from zeropull.nodeagent.images.image_on_node import ImageOnNode
from zeropull.nodeagent.images.ladder import Ladder
from zeropull.nodeagent.images.layer_pull import LayerPull, directory_names
from zeropull.nodeagent.images.plain_pull import PlainPull
from zeropull.nodeagent.link_share import LinkShare
from zeropull.nodeagent.records import AgentRecords, CopyRecord
from zeropull.resources.node import SNAPSHOTTER, NodeConfig
from zeropull.resources.stages import Stage, StageRecord
from zeropull.tasks import TaskSet
from zeropull.telemetry import get_logger

MAX_FLIGHTS = 1000  # images on their way at the same time: more than a node has copies

log = get_logger(__name__)


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
        disk: NodeDisk,
        link: LinkShare,
    ) -> None:
        self.ready: dict[str, ImageOnNode] = {}
        self.failures: dict[str, Failure] = {}
        self.progress: dict[str, str] = {}
        self.paths: Counter[str] = Counter()  # how often each rung has brought an image
        self._disk = disk
        self.documents = ImageDocuments(records, catalog)
        self._client = client
        self._catalog = catalog
        self._assignment = assignment
        tell = self.progress.__setitem__
        receiver = Path(config.receiver_socket) if config.receiver_socket else None
        self.arriving = ArrivingVolumes(receiver)
        self._layer_pull = LayerPull(config, catalog, disk, link, tell)
        self._plain_pull = PlainPull(config, client, disk, link, tell)
        self._ladder = Ladder(
            client,
            catalog,
            self.documents,
            self._layer_pull,
            self._plain_pull,
            self.arriving,
            assignment,
            changed,
            tell,
        )
        self._flights = TaskSet[tuple[str, bool], ImageOnNode]("images", limit=MAX_FLIGHTS)
        self._records = records
        self._uncached = records.load_uncached()

    @property
    def registry_bytes(self) -> int:
        """All that this agent has got from registries."""
        pulled = self._layer_pull.registry_bytes + self._plain_pull.registry_bytes
        return pulled + self._ladder.document_bytes

    @property
    def fallbacks(self) -> Counter[str]:
        """How often an image did not come by the first rung, by reason."""
        return self._ladder.fallbacks

    async def ensure(self, image: ImageAssignment, *, plain_because: str = "") -> ImageOnNode:
        """The image, ready to run. `plain_because`: by containerd's ordinary way, whatever is
        assigned, and why.

        A second call finds everything there and reports no byte.

        Raises:
            ZeropullError: as the registry, the image or the disk say; the cache never fails it.
        """
        key = (image.manifest_digest, bool(plain_because))
        flight = self._flights.get(key)
        self._note_caching(image)
        if flight is None:
            work = self._fly(image, plain_because=plain_because)
            flight = self._flights.start(key, work)
        return await asyncio.shield(flight)

    def in_flight(self, image: ImageAssignment, *, plain: bool) -> bool:
        """Another copy has asked for it already and it is still on its way."""
        return (image.manifest_digest, plain) in self._flights

    async def close(self) -> None:
        """End the flights; what they have published stays."""
        await self._flights.close()

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
        """A layer of it turned out bad: the image is made ready anew before its next use."""
        known = self.ready.pop(manifest_digest, None)
        if known is not None:
            self._ladder.spoil(manifest_digest, known.name)

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
        in_use = await self.layers_in_use()
        layers = directory_names(self.documents.own_chain_ids(manifest_digest))
        if layers & in_use or any(key[0] == manifest_digest for key in self._flights):
            return  # of a container that is still being removed, say: the next round tries again
        log.info("image is not cached and goes", manifest_digest=manifest_digest)
        self.documents.forget(manifest_digest)
        self._uncached.discard(manifest_digest)
        self._records.save_uncached(self._uncached)
        await self._disk.remove(layers)

    async def _fly(self, image: ImageAssignment, *, plain_because: str) -> ImageOnNode:
        digest = image.manifest_digest
        try:
            found = await self._ladder.walk(image, plain_because=plain_because)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # panics of Rust libraries are no Exception
            self.failures[digest] = failure_of(error, Stage.IMAGE)
            raise
        finally:
            self.progress.pop(digest, None)
        self.ready[digest] = found
        self.failures.pop(digest, None)
        self.paths[found.path] += 1
        return found

    async def layers_in_use(self) -> set[str]:
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
