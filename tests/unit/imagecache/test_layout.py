"""A generation's index is read as it was written, and only by its own digest and format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from zeropull.errors import IntegrityError, InvalidInput, NotFound
from zeropull.imagecache.layout import (
    GENERATION_FILE,
    CachedImage,
    GenerationIndex,
    generation_blob,
    generation_layer,
    generation_profile,
    read_generation_index,
)
from zeropull.layers.layout import encode_document
from zeropull.oci.digests import digest_of

HEX = "ab" * 32
INDEX = GenerationIndex(
    3,
    "endpoint-a",
    5.0,
    (CachedImage(f"sha256:{HEX}", "r/i:1", "type", f"sha256:{HEX}", (f"sha256:{HEX}",)),),
    {f"sha256:{HEX}": f"sha256:{HEX}"},
)


def test_the_index_is_read_by_its_digest(tmp_path: Path) -> None:
    content = encode_document(INDEX)
    (tmp_path / GENERATION_FILE).write_bytes(content)
    assert read_generation_index(tmp_path) == INDEX
    assert read_generation_index(tmp_path, digest=digest_of(content)) == INDEX
    with pytest.raises(IntegrityError):
        read_generation_index(tmp_path, digest=f"sha256:{HEX}")


def test_an_unknown_format_and_a_missing_index_are_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_generation_index(tmp_path)
    (tmp_path / GENERATION_FILE).write_bytes(encode_document(replace(INDEX, format=9)))
    with pytest.raises(IntegrityError):
        read_generation_index(tmp_path)


def test_places_are_named_after_digests_and_nothing_else() -> None:
    folder = Path("/generations/3")
    assert generation_layer(folder, f"sha256:{HEX}") == folder / "layers" / HEX
    assert generation_blob(folder, f"sha256:{HEX}") == folder / "blobs" / HEX
    assert generation_profile(folder, f"sha256:{HEX}") == folder / "profiles" / f"{HEX}.json"
    for place in (generation_layer, generation_blob, generation_profile):
        with pytest.raises(InvalidInput):
            place(folder, "sha256:../../etc")
