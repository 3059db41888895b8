"""What the node tells about its images: whether all their layers can be collected here."""

from __future__ import annotations

from zeropull.controlapi.messages import ImageReport, NodeAssignment
from zeropull.nodeagent.images.catalog import Catalog
from zeropull.nodeagent.images.node_images import NodeImages
from zeropull.resources.node import SNAPSHOTTER


class ImageReports:
    """Follows the assigned images; their chain IDs are known once their config was seen."""

    def __init__(self, catalog: Catalog, images: NodeImages) -> None:
        self._catalog = catalog
        self._images = images
        self._chains: dict[str, tuple[str, ...]] = {}

    def refresh(self, assignment: NodeAssignment) -> None:
        """Forget images that are assigned no more."""
        wanted = {image.manifest_digest for image in assignment.images}
        for digest in set(self._chains) - wanted:
            del self._chains[digest]

    def reports(self, assignment: NodeAssignment | None) -> tuple[ImageReport, ...]:
        images = assignment.images if assignment else ()
        return tuple(self._report(image.manifest_digest) for image in images)

    def _report(self, digest: str) -> ImageReport:
        chains = self._chains.get(digest) or self._images.documents.chain_ids(digest)
        if chains:
            self._chains[digest] = chains
        known = self._images.ready.get(digest)
        complete = bool(chains) and all(self._catalog.target(each) is not None for each in chains)
        failure = self._images.failures.get(digest)
        plain = known is not None and known.snapshotter != SNAPSHOTTER
        return ImageReport(
            manifest_digest=digest,
            complete=complete and not plain,
            chain_ids=chains,
            layers_from_cache=known.layers_from_cache if known else 0,
            layers_total=len(chains),
            registry_bytes=known.registry_bytes if known else 0,
            path=known.path if known else "",
            failure=failure.kind if failure else None,
            message=failure.message if failure else "",
            dropped_layers=tuple(each for each in chains if each in self._catalog.dropped),
            on_node=complete or plain,
        )
