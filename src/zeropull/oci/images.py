"""What an image is once its tag is resolved: one platform's manifest and config, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass

from zeropull.oci.digests import chain_ids


@dataclass(frozen=True, slots=True)
class Descriptor:
    """OCI content descriptor. `size` in bytes."""

    media_type: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """A reference resolved for one platform.

    `reference` is what the user wrote; `manifest_digest` the digest of `manifest`, the raw bytes of
    the *platform's* image manifest (never an index). `layers` bottom-up; `diff_ids` same order.
    """

    reference: str
    manifest_digest: str
    manifest_media_type: str
    manifest: bytes
    config_digest: str
    config: bytes
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[str, ...]

    @property
    def chain_ids(self) -> list[str]:
        return chain_ids(list(self.diff_ids))

    @property
    def compressed_bytes(self) -> int:
        return sum(layer.size for layer in self.layers)
