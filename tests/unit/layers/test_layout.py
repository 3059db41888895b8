"""The document of a layer: equal indexes give equal bytes, and a wrong one is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from zeropull.errors import IntegrityError, NotFound
from zeropull.layers.layout import (
    LAYER_FILE,
    DataRecord,
    FileRecord,
    LayerIndex,
    encode_document,
    read_layer_index,
)
from zeropull.oci.digests import digest_of

INDEX = LayerIndex(
    chain_id="sha256:" + "a" * 64,
    diff_id="sha256:" + "b" * 64,
    parent_chain_id="",
    meta=FileRecord(4096, "sha256:" + "c" * 64),
    data=DataRecord((256 << 10) + 1, "sha256:" + "d" * 64),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    content = encode_document(INDEX)
    (tmp_path / LAYER_FILE).write_bytes(content)
    assert read_layer_index(tmp_path) == INDEX
    assert read_layer_index(tmp_path, digest=digest_of(content)) == INDEX
    assert encode_document(read_layer_index(tmp_path)) == content


def test_a_block_that_is_begun_counts() -> None:
    assert INDEX.data.blocks == 2
    assert INDEX.stored_bytes == 4096 + (256 << 10) + 1 + 2 * 32


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"{", "is damaged"),
        (b'{"chain_id": "\xff"}', "is damaged"),
        (encode_document(dataclasses.replace(INDEX, format=2)), "has format 2, this version reads"),
    ],
    ids=["cut", "no-text", "newer"],
)
def test_a_wrong_document_is_refused(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / LAYER_FILE).write_bytes(content)
    with pytest.raises(IntegrityError, match=match):
        read_layer_index(tmp_path)


def test_another_digest_and_no_document(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_layer_index(tmp_path)
    (tmp_path / LAYER_FILE).write_bytes(encode_document(INDEX))
    with pytest.raises(IntegrityError, match="expected sha256:0000"):
        read_layer_index(tmp_path, digest="sha256:" + "0" * 64)
