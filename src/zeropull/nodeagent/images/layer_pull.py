"""Rungs two and three of the ladder: the layers that are missing come by our own one-pass pull.

One flight per layer: an image that needs what another image's flight pulls right now waits for it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from zeropull.controlapi.messages import ImageAssignment
from zeropull.erofs.tar_layer import LayerLimits
from zeropull.errors import IntegrityError
from zeropull.layers.layout import layer_directory
from zeropull.layers.pull import PullProgress, pull_layers
from zeropull.nodeagent.disk import NodeDisk
from zeropull.nodeagent.images.catalog import Catalog, FoundLayer
from zeropull.nodeagent.images.documents import registry_access
from zeropull.nodeagent.link_share import LinkShare
from zeropull.oci.digests import hex_of
from zeropull.oci.images import ResolvedImage
from zeropull.registry.blobs import BlobSource, open_blob
from zeropull.registry.client import RegistryClient
from zeropull.resources.node import NodeConfig
from zeropull.telemetry import get_logger

USER_AGENT = "zeropull"

log = get_logger(__name__)


class LayerPull:
    """Pulls into the node's layer store. `tell` gets a sentence on how far an image has come."""

    def __init__(
        self,
        config: NodeConfig,
        catalog: Catalog,
        disk: NodeDisk,
        link: LinkShare,
        tell: Callable[[str, str], None],
    ) -> None:
        self.registry_bytes = 0
        self._limits = LayerLimits(config.layer_bytes, config.layer_entries)
        self._catalog = catalog
        self._disk = disk
        self._link = link
        self._tell = tell
        self._pulling: dict[str, asyncio.Event] = {}

    def under_way(self) -> Collection[str]:
        """Chain IDs of the layers that are being pulled now."""
        return self._pulling.keys()

    async def pull_missing(
        self, image: ImageAssignment, resolved: ResolvedImage, found: dict[str, FoundLayer]
    ) -> int:
        """Pull what is not in `found` and add it there; returns the bytes from the registry.

        Raises:
            DiskFull: with the arithmetic.
            IntegrityError, ImageError, Unavailable, NotFound, AccessDenied: of the registry.
        """
        chains = resolved.chain_ids
        pulled_bytes = 0
        while missing := [number for number, chain in enumerate(chains) if chain not in found]:
            others = [self._pulling[chains[n]] for n in missing if chains[n] in self._pulling]
            if others:
                self._tell(image.manifest_digest, "another image's pull brings layers of this one")
                await asyncio.gather(*(event.wait() for event in others))
            else:
                pulled_bytes += await self._pull(image, resolved, missing)
            arrived = await self._catalog.link_layers([chains[n] for n in missing], ())
            if not others and len(arrived) < len(missing):
                raise IntegrityError(f"layers of {image.reference} are damaged on the node's disk")
            found.update(arrived)
        return pulled_bytes

    async def _pull(
        self, image: ImageAssignment, resolved: ResolvedImage, missing: Sequence[int]
    ) -> int:
        chains = resolved.chain_ids
        events = {chains[number]: asyncio.Event() for number in missing}
        self._pulling.update(events)
        log.info("pulling layers", image=image.reference, layers=len(missing), of=len(chains))
        try:
            what = f"image {image.reference}"
            await self._disk.make_room(sum(resolved.layers[n].size for n in missing), what)
            watch = await self._disk.watch(what)

            def follow(progress: PullProgress) -> None:
                self._tell(image.manifest_digest, describe_progress(progress, len(chains)))
                if watch is not None:
                    watch.check()

            async with RegistryClient(registry_access(image), user_agent=USER_AGENT) as registry:
                sources = [
                    await registry.blob_source(image.reference, resolved.layers[number])
                    for number in missing
                ]
                with self._link.image_arrives(sum(resolved.layers[n].size for n in missing)):
                    result = await pull_layers(
                        resolved,
                        list(missing),
                        sources,
                        self._catalog.layers,
                        self._parent,
                        follow,
                        limits=self._limits,
                        open_blob=self._open_blob,
                    )
        finally:
            for chain, event in events.items():
                del self._pulling[chain]
                event.set()
        self.registry_bytes += result.registry_bytes
        return result.registry_bytes

    def _open_blob(
        self, source: BlobSource, stop: threading.Event, on_bytes: Callable[[int], None]
    ) -> AbstractContextManager[Iterator[memoryview]]:
        def count(received: int) -> None:
            on_bytes(received)
            self._link.image_bytes(received)

        return open_blob(source, stop=stop, on_bytes=count, on_use=self._link.image_uses)

    def _parent(self, chain_id: str) -> Path | None:
        own = layer_directory(self._catalog.layers, chain_id)
        return own if own.is_dir() else self._catalog.target(chain_id)


def describe_progress(progress: PullProgress, layers: int) -> str:
    """The image stage's detail while layers arrive."""
    here = layers - progress.layers_total + progress.layers_done
    return (
        f"{progress.registry_bytes:,} of {progress.registry_bytes_total:,} B from the registry, "
        f"{here}/{layers} layers here"
    )


def directory_names(chain_ids: Iterable[str]) -> set[str]:
    """As their directories in the layer store are called."""
    return {hex_of(chain_id) for chain_id in chain_ids}
