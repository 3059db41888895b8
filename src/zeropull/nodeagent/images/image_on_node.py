"""An image that is ready on this node."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageOnNode:
    """An image that containers can be made from. Bytes are those of the flight that brought it.

    `path` is "cached", "partial", "fallback" or "containerd". `volume_metadata_bytes` is what was
    read and verified of the volume's layers, `node_bytes` the metadata of layers that the node's
    own store had. `plain_because`: why containerd pulled it, "" when that was asked for."""

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
    plain_because: str = ""

    @property
    def detail(self) -> str:
        total = len(self.chain_ids)
        share = 100.0 * self.layers_from_cache / total if total else 100.0
        told = (
            f"{self.layers_from_cache}/{total} layers from the cache ({share:.1f} %), "
            f"{self.registry_bytes:,} B from the registry"
        )
        return f"{told}; {self.plain_because}" if self.plain_because else told
