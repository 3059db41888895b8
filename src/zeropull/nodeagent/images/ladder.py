"""The image stage: the ladder from a cache volume down to containerd's own pull.

    cached      every layer is on the node or on a cache volume: mounts only, no registry contact
    partial     only the layers that are missing or bad are pulled
    fallback    no layer was there: our own pull of all of them
    containerd  containerd's ordinary pull and its overlayfs snapshotter: our plugin does not work,
                or our reading refuses the image

Each rung falls through to the next. The registry's word is final: what it does not have, or does
not give to these credentials, no other rung gets from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from zeropull.containerd.adopt import adopt_image
from zeropull.containerd.client import ContainerdClient
from zeropull.controlapi.messages import ImageAssignment, ImagePath, NodeAssignment, VolumeMount
from zeropull.errors import (
    AccessDenied,
    DiskFull,
    ImageError,
    IntegrityError,
    NotFound,
    PlatformError,
    Unavailable,
    ZeropullError,
)
from zeropull.nodeagent.failures import first_of
from zeropull.nodeagent.images.arriving_volumes import ArrivingVolumes
from zeropull.nodeagent.images.catalog import Catalog, FoundLayer
from zeropull.nodeagent.images.documents import (
    ImageDocuments,
    pinned_name,
    registry_access,
)
from zeropull.nodeagent.images.image_on_node import ImageOnNode
from zeropull.nodeagent.images.layer_pull import USER_AGENT, LayerPull
from zeropull.nodeagent.images.plain_pull import PlainPull
from zeropull.oci.images import ResolvedImage
from zeropull.registry.client import RegistryClient
from zeropull.resources.node import SNAPSHOTTER
from zeropull.telemetry import get_logger

GENERATION_WAIT_S = 900.0  # the first pull of another node must be published by then
PLUGIN_PATIENCE_S = 5.0
PLUGIN_RETRY_S = 0.05
# No other rung changes them: the registry's word, one that is away, the machine, a full disk.
_FINAL = (NotFound, AccessDenied, Unavailable, PlatformError, DiskFull)
_REASON_CHARACTERS = 1000
ADOPT_ATTEMPTS = 3  # each time the layers that the plugin does not take are pulled again
INTEGRITY_ATTEMPTS = 2  # bytes may be damaged on their way once, hardly twice
INTEGRITY_RETRY_S = 1.0

log = get_logger(__name__)


class PluginBroken(ZeropullError):
    """Our snapshotter does not do its work; containerd itself does. Never leaves this module."""


class Ladder:
    """Brings one image after the other to this node. `assignment` gives the newest one, and
    `changed` is notified when there is a newer one; `tell` gets a sentence on how far an image
    has come."""

    def __init__(
        self,
        client: ContainerdClient,
        catalog: Catalog,
        documents: ImageDocuments,
        layer_pull: LayerPull,
        plain_pull: PlainPull,
        arriving: ArrivingVolumes,
        assignment: Callable[[], NodeAssignment | None],
        changed: asyncio.Condition,
        tell: Callable[[str, str], None],
    ) -> None:
        self.fallbacks: Counter[str] = Counter()  # why it was not the first rung
        self.document_bytes = 0  # of manifests and configs, from registries
        self._client = client
        self._catalog = catalog
        self._documents = documents
        self._layer_pull = layer_pull
        self._plain_pull = plain_pull
        self._arriving = arriving
        self._assignment = assignment
        self._changed = changed
        self._tell = tell
        self._refused: dict[str, str] = {}  # manifest digest -> why; containerd took these images
        self._spoiled: dict[str, str] = {}  # manifest digest -> name of the image in containerd

    def spoil(self, manifest_digest: str, name: str) -> None:
        """A layer of the image turned out bad. Before the image's next use containerd must let go
        of its snapshots, so that every layer is asked for anew."""
        self._spoiled[manifest_digest] = name

    async def walk(self, image: ImageAssignment, *, plain_because: str = "") -> ImageOnNode:
        """Bring the image. `plain_because`: by containerd's ordinary way, and why.

        Raises:
            ZeropullError: as the registry, the image or the disk say; the cache never fails it.
        """
        if plain_because:
            return await self._by_containerd(image, "mount", plain_because)
        if image.path is ImagePath.CONTAINERD:
            return await self._by_containerd(image, "assigned", "")
        if image.manifest_digest in self._refused:
            return await self._by_containerd(image, "refused", self._refused[image.manifest_digest])
        for attempt in range(1, INTEGRITY_ATTEMPTS + 1):
            try:
                return await self._make_available(image)
            except PluginBroken as error:
                why = f"our snapshotter does not work: {error}"
                return await self._by_containerd(image, "plugin", why)
            except (*_FINAL, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                if attempt < INTEGRITY_ATTEMPTS and isinstance(error, IntegrityError):
                    why = str(error)
                    log.warning("damaged bytes, once more", image=image.reference, reason=why)
                    await asyncio.sleep(INTEGRITY_RETRY_S)
                    continue
                return await self._after_refusal(image, first_of(error))
        raise AssertionError("the last attempt returns or raises")

    async def _after_refusal(self, image: ImageAssignment, ours: BaseException) -> ImageOnNode:
        """Our reading refuses the image, or breaks off over it: containerd's may take it."""
        foreseen = isinstance(ours, ZeropullError)
        what = str(ours) if foreseen else f"{type(ours).__name__}: {ours}"
        why = f"our reading refuses the image: {what[:_REASON_CHARACTERS]}"
        try:
            found = await self._by_containerd(image, "refused", why)
        except ZeropullError as theirs:
            both = f"{what[:_REASON_CHARACTERS]}; containerd's own pull failed as well: {theirs}"
            if isinstance(ours, ZeropullError) and not isinstance(theirs, DiskFull):
                raise type(ours)(both) from ours
            raise type(theirs)(both) from ours
        self._refused[image.manifest_digest] = why
        return found

    async def _by_containerd(self, image: ImageAssignment, reason: str, why: str) -> ImageOnNode:
        """`reason` counts in the node's figures, `why` is told to people."""
        log.warning("containerd pulls by itself", image=image.reference, reason=why or reason)
        self.fallbacks[reason] += 1
        found = await self._plain_pull.ensure(image)
        return dataclasses.replace(found, plain_because=why)

    async def _make_available(self, image: ImageAssignment) -> ImageOnNode:
        await self._release(image.manifest_digest)
        await self._arriving.bring(self._volumes(image))
        if image.wait_for_generation:
            image = await self._wait_for_generation(image)
        resolved = await self._documents.resolve(image, self._volumes(image))
        registry_bytes = 0
        if resolved is None:
            async with RegistryClient(registry_access(image), user_agent=USER_AGENT) as registry:
                resolved = await registry.fetch_manifest_image(
                    image.reference, image.manifest_digest
                )
            registry_bytes = len(resolved.manifest) + len(resolved.config)
            self.document_bytes += registry_bytes
        self._documents.keep(resolved)
        resolved = dataclasses.replace(resolved, reference=pinned_name(image))
        first: dict[str, FoundLayer] = {}
        for attempt in range(ADOPT_ATTEMPTS):
            found = await self._catalog.link_layers(resolved.chain_ids, self._volumes(image))
            first = dict(found) if attempt == 0 else first
            registry_bytes += await self._layer_pull.pull_missing(image, resolved, found)
            refused = await self._adopt(resolved)
            if not refused and self._catalog.linked_to(found):
                return self._outcome(image, resolved, first, registry_bytes)
            if not refused:
                # A layer was found damaged meanwhile: containerd has to let go of its mount.
                self.spoil(image.manifest_digest, resolved.reference)
                await self._release(image.manifest_digest)
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
        self._tell(image.manifest_digest, "another node pulls it for the image cache: waiting")
        try:
            async with asyncio.timeout(GENERATION_WAIT_S), self._changed:
                while True:
                    newest = self._newest(image)
                    await self._arriving.bring(self._volumes(newest))
                    here = await self._documents.resolve(newest, self._volumes(newest))
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
