"""The image stage: the ladder from a cache volume down to containerd's own pull.

    cached      every layer is on the node or on a cache volume: mounts only, no registry contact
    partial     only the layers that are missing or bad are pulled
    fallback    no layer was there: our own pull of all of them
    containerd  our plugin does not work: containerd's ordinary pull and its overlayfs snapshotter

One flight per image and per layer: copies that start together download once. A flight outlives
the copy that began it, since another one may wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import platform
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from zeropull.containerd.adopt import adopt_image
from zeropull.containerd.client import ContainerdClient
from zeropull.controlapi.messages import (
    ImageAssignment,
    ImagePath,
    NodeAssignment,
    VolumeMount,
)
from zeropull.errors import ImageError, IntegrityError, NotFound, Unavailable, ZeropullError
from zeropull.imagecache.convert import pull_layers
from zeropull.imagecache.layout import layer_directory
from zeropull.nodeagent.catalog import Catalog, FoundLayer
from zeropull.nodeagent.ctrpull import SNAPSHOTTER as OVERLAYFS
from zeropull.nodeagent.ctrpull import pull_with_ctr
from zeropull.nodeagent.records import AgentRecords
from zeropull.oci.digests import chain_ids, digest_of
from zeropull.oci.images import Descriptor, ResolvedImage
from zeropull.oci.references import parse_reference
from zeropull.registry.client import RegistryClient
from zeropull.registry.http import is_loopback, split_host
from zeropull.resources.node import SNAPSHOTTER, NodeConfig
from zeropull.resources.sources import RegistryAccess
from zeropull.telemetry import get_logger

GENERATION_WAIT_S = 900.0  # the first pull of another node must be published by then
PLUGIN_PATIENCE_S = 5.0
PLUGIN_RETRY_S = 0.05
ADOPT_ATTEMPTS = 3  # each time the layers that the plugin does not take are pulled again
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

log = get_logger(__name__)


class PluginBroken(ZeropullError):
    """Our snapshotter does not do its work; containerd itself does. Never leaves this package."""


@dataclass(frozen=True, slots=True)
class ImageOnNode:
    """An image that containers can be made from. Bytes are those of the flight that brought it.

    `volume_metadata_bytes` is what was read and verified of the volume's layers, `node_bytes` the
    metadata of layers that the node's own store had."""

    manifest_digest: str
    name: str  # of the image record in containerd
    snapshotter: str
    config: bytes
    chain_ids: tuple[str, ...]
    path: str
    registry_bytes: int
    volume_metadata_bytes: int
    node_bytes: int
    layers_from_cache: int

    @property
    def detail(self) -> str:
        total = len(self.chain_ids)
        share = 100.0 * self.layers_from_cache / total if total else 100.0
        return (
            f"{self.layers_from_cache}/{total} layers from the cache ({share:.1f} %), "
            f"{self.registry_bytes:,} B from the registry"
        )


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
        self.registry_bytes = 0
        self._config = config
        self._client = client
        self._catalog = catalog
        self._records = records
        self._assignment = assignment
        self._changed = changed
        self._flights: dict[tuple[str, bool], asyncio.Task[ImageOnNode]] = {}
        self._pulling: dict[str, asyncio.Event] = {}
        self._spoiled: dict[str, str] = {}

    async def ensure(self, image: ImageAssignment, *, plain: bool = False) -> ImageOnNode:
        """The image, ready to run. `plain`: containerd's ordinary way, whatever is assigned.

        A second call finds everything there and reports no byte.

        Raises:
            ZeropullError: as the registry, the image or the disk say; the cache never fails it.
        """
        key = (image.manifest_digest, plain)
        flight = self._flights.get(key)
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

    def spoil(self, manifest_digest: str) -> None:
        """A layer of it turned out bad: before its next use containerd must let go of its
        snapshots, so that every layer is asked for anew."""
        known = self.ready.pop(manifest_digest, None)
        if known is not None:
            self._spoiled[manifest_digest] = known.name

    async def _release(self, manifest_digest: str) -> None:
        """The image's containers are gone by now, or about to be: containerd's garbage collection
        takes each snapshot with its last user."""
        name = self._spoiled.get(manifest_digest)
        if name is None:
            return
        with contextlib.suppress(NotFound):
            await self._client.images.delete(name, sync=True)
        del self._spoiled[manifest_digest]

    async def release_unused(self, wanted: Collection[str]) -> None:
        """Delete the image records of all other manifests: containerd's garbage collection takes
        their snapshots, and with them the mounts. The layers' files stay in the data cache."""
        for record in await self._client.images.list():
            digest = record.name.partition("@")[2]
            flying = any(key[0] == digest for key in self._flights)
            if digest and digest not in wanted and not flying:
                log.info("image is released", image=record.name)
                self.ready.pop(digest, None)
                with contextlib.suppress(NotFound):
                    await self._client.images.delete(record.name, sync=True)

    def known_chain_ids(self, manifest_digest: str) -> tuple[str, ...]:
        """The image's chain IDs, () until its documents are on the node."""
        known = self.ready.get(manifest_digest)
        if known is not None:
            return known.chain_ids
        manifest = self._records.load_blob(manifest_digest)
        if manifest is None:
            return ()
        config = self._records.load_blob(parse_manifest(manifest).config_digest)
        return tuple(chain_ids(list(diff_ids_of(config)))) if config is not None else ()

    def _landed(self, key: tuple[str, bool], flight: asyncio.Task[ImageOnNode]) -> None:
        self._flights.pop(key, None)
        if not flight.cancelled() and flight.exception() is None:
            self.ready[key[0]] = flight.result()

    async def _walk(self, image: ImageAssignment, *, plain: bool) -> ImageOnNode:
        if plain or image.path is ImagePath.CONTAINERD:
            return await self._pull_plainly(image)
        try:
            return await self._make_available(image)
        except PluginBroken as error:
            log.warning(
                "snapshotter does not work, containerd pulls by itself",
                image=image.reference,
                reason=str(error),
            )
            return await self._pull_plainly(image)

    # ------------------------------------------------------------------ our own rungs

    async def _make_available(self, image: ImageAssignment) -> ImageOnNode:
        registry_bytes = 0
        await self._release(image.manifest_digest)
        if image.wait_for_generation:
            image = await self._wait_for_generation(image)
        resolved = await self._resolve_here(image)
        if resolved is None:
            async with self._registry(image) as registry:
                resolved = await registry.fetch_manifest_image(
                    image.reference, image.manifest_digest, platform=_platform_here()
                )
            registry_bytes += len(resolved.manifest) + len(resolved.config)
        _check_platform(resolved)
        self._records.save_blob(resolved.manifest_digest, resolved.manifest)
        self._records.save_blob(resolved.config_digest, resolved.config)
        resolved = dataclasses.replace(resolved, reference=pinned_name(image))
        first: dict[str, FoundLayer] = {}
        for attempt in range(ADOPT_ATTEMPTS):
            found = await self._catalog.link_layers(resolved.chain_ids, self._volumes(image))
            first = dict(found) if attempt == 0 else first
            registry_bytes += await self._pull_missing(image, resolved, found)
            refused = await self._adopt(resolved)
            if not refused:
                return self._outcome(resolved, first, registry_bytes)
            # The plugin checks each layer again before it mounts it: believe it, once.
            for chain_id in refused[:1]:
                first.pop(chain_id, None)
                self._catalog.drop(chain_id, "the snapshotter refuses it")
        raise PluginBroken(f"it does not take {image.reference} after {ADOPT_ATTEMPTS} attempts")

    async def _resolve_here(self, image: ImageAssignment) -> ResolvedImage | None:
        """Manifest and config without a registry: from the node, then from a volume."""
        manifest = await self._document(image, image.manifest_digest)
        if manifest is None:
            return None
        parsed = parse_manifest(manifest)
        config = await self._document(image, parsed.config_digest)
        if config is None:
            return None
        return dataclasses.replace(
            parsed, reference=image.reference, config=config, diff_ids=diff_ids_of(config)
        )

    async def _document(self, image: ImageAssignment, digest: str) -> bytes | None:
        content = self._records.load_blob(digest)
        if content is None:
            content = await self._catalog.volume_blob(self._volumes(image), digest)
        return content

    async def _pull_missing(
        self, image: ImageAssignment, resolved: ResolvedImage, found: dict[str, FoundLayer]
    ) -> int:
        """Pull what is not in `found` and add it there; returns the bytes from the registry.

        A layer that another image's flight pulls right now is waited for instead."""
        chains = resolved.chain_ids
        pulled_bytes = 0
        while missing := [number for number, chain in enumerate(chains) if chain not in found]:
            others = [self._pulling[chains[n]] for n in missing if chains[n] in self._pulling]
            if others:
                await asyncio.gather(*(event.wait() for event in others))
            else:
                pulled_bytes += await self._pull(image, resolved, missing)
            arrived = await self._catalog.link_layers([chains[n] for n in missing], ())
            if not others and len(arrived) < len(missing):
                raise IntegrityError(f"layers of {image.reference} are damaged on the node's disk")
            found.update(arrived)
        return pulled_bytes

    async def _pull(
        self, image: ImageAssignment, resolved: ResolvedImage, missing: list[int]
    ) -> int:
        chains = resolved.chain_ids
        events = {chains[number]: asyncio.Event() for number in missing}
        self._pulling.update(events)
        log.info("pulling layers", image=image.reference, layers=len(missing), of=len(chains))
        try:
            async with self._registry(image) as registry:
                sources = [
                    await registry.blob_source(image.reference, resolved.layers[number])
                    for number in missing
                ]
                result = await pull_layers(
                    resolved,
                    missing,
                    sources,
                    self._catalog.layers,
                    self._parent,
                    lambda _progress: None,
                )
        finally:
            for chain, event in events.items():
                del self._pulling[chain]
                event.set()
        self.registry_bytes += result.registry_bytes
        return result.registry_bytes

    def _parent(self, chain_id: str) -> Path | None:
        own = layer_directory(self._catalog.layers, chain_id)
        return own if own.is_dir() else self._catalog.target(chain_id)

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
        try:
            async with asyncio.timeout(GENERATION_WAIT_S), self._changed:
                while True:
                    newest = self._newest(image)
                    here = await self._resolve_here(newest)
                    if not newest.wait_for_generation or here is not None:
                        return newest
                    await self._changed.wait()
        except TimeoutError:
            log.warning("the generation did not come, pulling", image=image.reference)
        return newest

    def _newest(self, image: ImageAssignment) -> ImageAssignment:
        assignment = self._assignment()
        images: Iterable[ImageAssignment] = assignment.images if assignment else ()
        for each in images:
            if each.manifest_digest == image.manifest_digest:
                return each
        return image

    def _volumes(self, image: ImageAssignment) -> tuple[VolumeMount, ...]:
        assignment = self._assignment()
        return assignment.volumes if assignment and image.path is ImagePath.AUTO else ()

    def _registry(self, image: ImageAssignment) -> RegistryClient:
        return RegistryClient(registry_access(image), user_agent="zeropull")

    def _outcome(
        self, resolved: ResolvedImage, found: dict[str, FoundLayer], registry_bytes: int
    ) -> ImageOnNode:
        total = len(resolved.chain_ids)
        path = "cached" if len(found) == total else "partial" if found else "fallback"
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

    # ------------------------------------------------------------------ containerd's ordinary way

    async def _pull_plainly(self, image: ImageAssignment) -> ImageOnNode:
        name = pinned_name(image)
        before = await self._plain_image(image, name)
        if before is not None:
            return before
        host = parse_reference(image.reference).registry
        plain_http = bool(image.registry and image.registry.plain_http) or is_loopback(
            split_host(host)
        )
        await pull_with_ctr(
            name,
            socket=self._config.containerd_socket,
            namespace=self._client.namespace,
            platform=_platform_here(),
            access=image.registry,
            plain_http=plain_http,
            scratch=self._config.agent_dir,
        )
        after = await self._plain_image(image, name)
        if after is None:
            raise Unavailable(f"containerd does not know {name} after it pulled it")
        manifest = await self._client.content.read(image.manifest_digest)
        parsed = parse_manifest(manifest)
        fetched = parsed.compressed_bytes + len(manifest) + len(after.config)
        self.registry_bytes += fetched
        return dataclasses.replace(after, registry_bytes=fetched, layers_from_cache=0)

    async def _plain_image(self, image: ImageAssignment, name: str) -> ImageOnNode | None:
        """The image as overlayfs has it, None when it is not all there."""
        try:
            manifest = await self._client.content.read(image.manifest_digest)
            config = await self._client.content.read(parse_manifest(manifest).config_digest)
            chains = chain_ids(list(diff_ids_of(config)))
            await self._client.images.get(name)
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


def registry_access(image: ImageAssignment) -> Callable[[str], RegistryAccess | None]:
    """The lookup that a RegistryClient asks: credentials for the image's own host only."""
    given = image.registry
    return lambda host: given if given is not None and given.host == host else None


def pinned_name(image: ImageAssignment) -> str:
    """host/repository@digest: a moved tag on the same node is another name."""
    reference = parse_reference(image.reference)
    return f"{reference.registry}/{reference.repository}@{image.manifest_digest}"


def parse_manifest(manifest: bytes) -> ResolvedImage:
    """What a manifest alone says; config and diff IDs stay empty.

    Raises:
        ImageError: it is no image manifest.
    """
    try:
        document = json.loads(manifest)
        layers = tuple(
            Descriptor(each["mediaType"], each["digest"], each["size"])
            for each in document["layers"]
        )
        config_digest = document["config"]["digest"]
        media_type = document.get("mediaType") or "application/vnd.oci.image.manifest.v1+json"
    except (ValueError, KeyError, TypeError) as error:
        raise ImageError(f"{digest_of(manifest)} is no image manifest: {error!r}") from error
    return ResolvedImage(
        "", digest_of(manifest), media_type, manifest, config_digest, b"", layers, ()
    )


def diff_ids_of(config: bytes) -> tuple[str, ...]:
    """Raises:
    ImageError: it is no image config.
    """
    try:
        return tuple(json.loads(config)["rootfs"]["diff_ids"])
    except (ValueError, KeyError, TypeError) as error:
        raise ImageError(f"the image's config lists no diff IDs: {error!r}") from error


def _check_platform(resolved: ResolvedImage) -> None:
    try:
        wanted = json.loads(resolved.config).get("architecture", "")
    except (ValueError, AttributeError) as error:
        raise ImageError(f"{resolved.reference}: the config is not JSON") from error
    here = _platform_here()
    if wanted and f"linux/{wanted}" != here:
        raise ImageError(
            f"image {resolved.reference} is for the platform linux/{wanted}, and this node is "
            f"{here}: build it for {here}"
        )


def _platform_here() -> str:
    return f"linux/{_ARCHITECTURES.get(platform.machine(), platform.machine())}"
