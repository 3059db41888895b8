"""The last rung: containerd's ordinary way, for nodes on which our plugin does not work and images
that our reading refuses."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Sequence

from zeropull.containerd.client import ContainerdClient
from zeropull.containerd.leases import LEASE_PREFIX
from zeropull.controlapi.messages import ImageAssignment
from zeropull.errors import ImageError, NotFound, Unavailable, ZeropullError
from zeropull.nodeagent.disk import NodeDisk
from zeropull.nodeagent.images.ctr_pull import SNAPSHOTTER as OVERLAYFS
from zeropull.nodeagent.images.ctr_pull import pull_with_ctr
from zeropull.nodeagent.images.documents import (
    config_digest_of,
    diff_ids_of,
    parse_manifest,
    pinned_name,
    platform_here,
)
from zeropull.nodeagent.images.image_on_node import ImageOnNode
from zeropull.nodeagent.link_share import LinkShare
from zeropull.oci.digests import chain_ids
from zeropull.oci.images import Descriptor
from zeropull.oci.references import parse_reference
from zeropull.registry.addresses import is_plain
from zeropull.resources.node import NodeConfig

PROGRESS_INTERVAL_S = 1.0


class PlainPull:
    """Images by containerd's own pull. `tell` gets a sentence on how far an image has come."""

    def __init__(
        self,
        config: NodeConfig,
        client: ContainerdClient,
        disk: NodeDisk,
        link: LinkShare,
        tell: Callable[[str, str], None],
    ) -> None:
        self.registry_bytes = 0
        self._pulls = 0
        self._config = config
        self._client = client
        self._disk = disk
        self._link = link
        self._tell = tell

    async def ensure(self, image: ImageAssignment) -> ImageOnNode:
        """The image as containerd's overlayfs snapshotter has it, pulled when it is not there.

        Raises:
            DiskFull: the node's budget is used up; what came so far is containerd's garbage.
        ZeropullError: as ctr says.
        """
        before = await self.find(image)
        if before is not None:
            return before
        await self._disk.make_room(0, f"image {image.reference}")
        host = parse_reference(image.reference).registry
        pull = asyncio.create_task(
            pull_with_ctr(
                pinned_name(image),
                socket=self._config.containerd_socket,
                namespace=self._client.namespace,
                platform=platform_here(),
                access=image.registry,
                plain_http=is_plain(host, image.registry),
                scratch=self._config.agent_dir,
            )
        )
        self._pulls += 1
        try:
            with self._link.containerd_pulls():
                await self._follow(image, pull)
                await pull
        finally:
            self._pulls -= 1
            pull.cancel()
            await asyncio.gather(pull, return_exceptions=True)
            await self._drop_leases()
        after = await self.find(image)
        if after is None:
            raise Unavailable(f"containerd does not know {pinned_name(image)} after it pulled it")
        manifest = await self._client.content.read(image.manifest_digest)
        fetched = _compressed_bytes(manifest) + len(manifest) + len(after.config)
        self.registry_bytes += fetched
        return dataclasses.replace(after, registry_bytes=fetched, layers_from_cache=0)

    async def find(self, image: ImageAssignment) -> ImageOnNode | None:
        """The image as overlayfs has it, None when it is not all there."""
        name = pinned_name(image)
        try:
            manifest = await self._client.content.read(image.manifest_digest)
            config = await self._client.content.read(config_digest_of(manifest))
            chains = chain_ids(list(diff_ids_of(config)))
            await self._client.images.get(name)
            if chains:
                await self._client.snapshots(OVERLAYFS).stat(chains[-1])
        except NotFound:
            return None
        return ImageOnNode(
            manifest_digest=image.manifest_digest,
            name=name,
            snapshotter=OVERLAYFS,
            config=config,
            chain_ids=tuple(chains),
            path="containerd",
            registry_bytes=0,
            volume_metadata_bytes=0,
            node_bytes=0,
            layers_from_cache=len(chains),
        )

    async def _follow(self, image: ImageAssignment, pull: asyncio.Task[None]) -> None:
        """Until the pull has ended: tell how far it is, and hold it to the budget."""
        while not (await asyncio.wait({pull}, timeout=PROGRESS_INTERVAL_S))[0]:
            with contextlib.suppress(NotFound, Unavailable, ImageError):
                manifest = parse_manifest(await self._client.content.read(image.manifest_digest))
                here, whole = await self._arrived(manifest.layers)
                self._tell(
                    image.manifest_digest,
                    f"{here:,} of {manifest.compressed_bytes:,} B from the registry by "
                    f"containerd, {whole}/{len(manifest.layers)} layers here",
                )
            await self._disk.check(f"image {image.reference}")

    async def _drop_leases(self) -> None:
        """A ctr that was ended leaves its lease for a day, and with it all that it had fetched. The
        namespace is this node's alone: what is not ours is ctr's."""
        if self._pulls:
            return
        with contextlib.suppress(ZeropullError):
            for lease in await self._client.leases.list():
                if not lease.startswith(LEASE_PREFIX):
                    await self._client.leases.delete(lease, sync=True)

    async def _arrived(self, layers: Sequence[Descriptor]) -> tuple[int, int]:
        """Bytes and whole layers that are in containerd's content store."""
        arriving = await self._client.content.arriving()
        total, whole = 0, 0
        for layer in layers:
            try:
                total += (await self._client.content.info(layer.digest)).size
                whole += 1
            except NotFound:
                total += sum(n for ref, n in arriving.items() if ref.endswith(layer.digest))
        return total, whole


def _compressed_bytes(manifest: bytes) -> int:
    """0 for a manifest that only containerd can read."""
    try:
        return parse_manifest(manifest).compressed_bytes
    except ImageError:
        return 0
