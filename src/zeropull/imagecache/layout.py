"""What lies where in a generation, and its JSON document.

    generation.json                 GenerationIndex
    layers/<chain hex>/             layer directories (`zeropull.layers.layout`)
    blobs/<hex>                     manifests and configs
    profiles/<manifest hex>.json    start profiles; optional

The control plane writes generations, nodes read them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from zeropull.layers.layout import read_document
from zeropull.oci.digests import hex_of

FORMAT = 1
GENERATION_FILE = "generation.json"


@dataclass(frozen=True, slots=True)
class CachedImage:
    """One image of a generation; `reference` as the user wrote it, `chain_ids` bottom-up."""

    manifest_digest: str
    reference: str
    manifest_media_type: str
    config_digest: str
    chain_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GenerationIndex:
    """generation.json. `layers` maps chain ID to the digest of its layer.json; `created_at` is in
    Unix seconds."""

    generation: int
    endpoint_uid: str
    created_at: float
    images: tuple[CachedImage, ...]
    layers: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT


def generation_layer(generation: Path, chain_id: str) -> Path:
    return generation / "layers" / hex_of(chain_id)


def generation_blob(generation: Path, digest: str) -> Path:
    return generation / "blobs" / hex_of(digest)


def generation_profile(generation: Path, manifest_digest: str) -> Path:
    return generation / "profiles" / f"{hex_of(manifest_digest)}.json"


def read_generation_index(generation: Path, *, digest: str | None = None) -> GenerationIndex:
    """Read generation.json, which must have `digest` where one is given.

    Raises:
        NotFound: there is no such generation.
        IntegrityError: the document is damaged, or of an unknown format.
    """
    return read_document(generation / GENERATION_FILE, GenerationIndex, digest, FORMAT)
