"""A layer is compared with its digests, as much of it as the caller asks for."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from tests.fixtures.layers import image_of, member, open_bytes, tar_of
from zeropull.errors import IntegrityError, NotFound, Unavailable
from zeropull.layers.layout import BLOCK_BYTES, layer_directory
from zeropull.layers.pull import pull_layers
from zeropull.layers.verify import verify_blocks, verify_layer, verify_metadata


@pytest.fixture
async def layer(tmp_path: Path) -> Path:
    """One whose data has three blocks, the last one in part."""
    image, blobs = image_of([tar_of(member("file", data=b"x" * (2 * BLOCK_BYTES + 5000)))])
    sources: list[object] = list(blobs)
    await pull_layers(image, [0], sources, tmp_path, lambda _: None, open_blob=open_bytes)  # type: ignore[arg-type]
    return layer_directory(tmp_path, image.chain_ids[0])


def chain_of(layer: Path) -> str:
    return f"sha256:{layer.name}"


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_a_whole_layer_is_whole(layer: Path) -> None:
    index = verify_layer(layer, chain_of(layer), threading.Event())
    assert index.data.blocks == verify_blocks(layer) == 3
    assert verify_metadata(layer) == index


@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_bit_in_a_block_is_found_where_that_block_is_looked_at(layer: Path, block: int) -> None:
    flip(layer / "data.erofs", block * BLOCK_BYTES + 10)
    verify_metadata(layer)
    assert verify_blocks(layer, [each for each in range(3) if each != block]) == 2
    for check in (
        lambda: verify_blocks(layer, [block]),
        lambda: verify_blocks(layer),
        lambda: verify_layer(layer, chain_of(layer)),
    ):
        with pytest.raises(IntegrityError, match=f"block {block} is not what its digest says"):
            check()


@pytest.mark.parametrize("name", ["meta.erofs", "blocks.blake3"])
def test_a_bit_beside_the_data_is_found_without_reading_the_data(layer: Path, name: str) -> None:
    flip(layer / name, 20)
    with pytest.raises(IntegrityError, match=name):
        verify_metadata(layer)


def test_data_that_ends_early_is_found_without_reading_it(layer: Path) -> None:
    with (layer / "data.erofs").open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(IntegrityError, match="has 4096 bytes"):
        verify_metadata(layer)


def test_another_layer_is_not_the_one_that_is_asked_for(layer: Path) -> None:
    with pytest.raises(IntegrityError, match="expected sha256:0000"):
        verify_layer(layer, "sha256:" + "0" * 64)
    with pytest.raises(IntegrityError, match="has the digest"):
        verify_metadata(layer, digest="sha256:" + "0" * 64)


def test_a_layer_that_is_not_there_is_not_found(layer: Path) -> None:
    shutil.rmtree(layer)
    with pytest.raises(NotFound):
        verify_layer(layer, chain_of(layer))


def test_a_stop_ends_it(layer: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Unavailable, match="stopped"):
        verify_layer(layer, chain_of(layer), stop)
