"""The first half of a copy's launch: its image and its models, at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from zeropull.controlapi.messages import CopyAssignment, FailureKind, ImageAssignment
from zeropull.nodeagent.failures import Failure, StageFailed, failing_as
from zeropull.nodeagent.images.arriving_volumes import Arrival
from zeropull.nodeagent.images.image_on_node import ImageOnNode
from zeropull.nodeagent.images.node_images import NodeImages
from zeropull.nodeagent.images.start_profiles import StartProfiles
from zeropull.nodeagent.link_share import LinkShare
from zeropull.nodeagent.models import ModelOnNode, NodeModels
from zeropull.nodeagent.records import CopyRecord
from zeropull.resources.stages import Stage

PROGRESS_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class ArrivedImage:
    """`shared`: another copy's flight brought it, which tells of its bytes. `volume_source`: what
    the bytes of the image cache are called in a timeline."""

    image: ImageOnNode
    shared: bool
    volume_source: str = "volume"


@dataclass(frozen=True, slots=True)
class ArrivedModels:
    """`fetched_bytes` came from the model store, the rest was here."""

    models: tuple[ModelOnNode, ...]
    fetched_bytes: int
    detail: str


class Preparation:
    """Brings images and models for the copies of a node. `image_of` gives an image's newest
    assignment by its manifest digest."""

    def __init__(
        self,
        images: NodeImages,
        models: NodeModels,
        profiles: StartProfiles,
        link: LinkShare,
        image_of: Callable[[str], ImageAssignment | None],
    ) -> None:
        self._images = images
        self._models = models
        self._profiles = profiles
        self._link = link
        self._image_of = image_of

    def remember(self, record: CopyRecord) -> None:
        """The copy's container runs already: its image is here."""
        self._images.remember(record)

    async def image(
        self, copy: CopyAssignment, tell: Callable[[str], None], *, plain_because: str = ""
    ) -> ArrivedImage:
        """The copy's image, ready to run. `tell` hears every second how far it has come.
        `plain_because`: by containerd's ordinary way, and why.

        Raises:
            StageFailed: of the image stage.
        """
        assignment = self._image_of(copy.image)
        if assignment is None:
            message = f"the assignment has no image {copy.image}"
            raise StageFailed(Failure(FailureKind.INTERNAL, message, retry=True))
        shared = self._images.in_flight(assignment, plain=bool(plain_because))
        teller = asyncio.create_task(self._tell_progress(assignment.manifest_digest, tell))
        try:
            with failing_as(Stage.IMAGE):
                image = await self._images.ensure(assignment, plain_because=plain_because)
        finally:
            teller.cancel()
            await asyncio.gather(teller, return_exceptions=True)
        self._profiles.warm_up(image)
        source = "network_cache" if self._images.arriving.is_in_use else "volume"
        return ArrivedImage(image, shared, source)

    async def arrival(self) -> Arrival:
        """What has come of the image cache over the network so far."""
        return await self._images.arriving.arrival()

    async def models(
        self, copy: CopyAssignment, claim: Callable[[str], None], timeout_s: float
    ) -> ArrivedModels:
        """The copy's artifacts on this node's disk. `claim` is told each one's name before it is
        there; `timeout_s` is what is left of the copy's time-out.

        Raises:
            StageFailed: of the model stage.
        """
        before = self._link.shared
        found: list[ModelOnNode] = []
        with failing_as(Stage.MODEL):
            try:
                async with asyncio.timeout(max(0.0, timeout_s)):
                    for artifact in copy.artifacts:
                        model = await self._models.ensure(
                            artifact, enable_caching=copy.enable_caching, claim=claim
                        )
                        found.append(model)
            except TimeoutError as error:
                raise TimeoutError(
                    "the model artifacts did not arrive within "
                    f"{copy.model_download_timeout_s:g} s: check the object store, or allow more "
                    "with ModelDataDownloadTimeoutInSeconds"
                ) from error
        fetched = sum(model.fetched_bytes for model in found)
        share = self._link.told(before) if fetched else ""
        detail = f"{len(found)} artifacts, {fetched:,} B from the model store"
        return ArrivedModels(tuple(found), fetched, f"{detail}, {share}" if share else detail)

    async def _tell_progress(self, manifest_digest: str, tell: Callable[[str], None]) -> None:
        while True:
            await asyncio.sleep(PROGRESS_INTERVAL_S)
            tell(self._images.progress.get(manifest_digest, ""))
