"""What is wrong with a layer is told before the kernel is asked to mount it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.fixtures.layers import image_of, member, open_bytes, tar_of
from zeropull.errors import IntegrityError, NotFound
from zeropull.layers.layout import DATA_FILE, META_FILE, layer_directory
from zeropull.layers.mount import mount_layer, unmount
from zeropull.layers.pull import pull_layers


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    image, blobs = image_of([tar_of(member("file", data=b"x" * 9000))])
    asyncio.run(
        pull_layers(
            image, [0], blobs, tmp_path, lambda _: None, open_blob=open_bytes, in_processes=False
        )
    )
    return layer_directory(tmp_path, image.chain_ids[0])


def test_a_layer_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        mount_layer(tmp_path / "nothing", tmp_path)


@pytest.mark.parametrize(("name", "kept"), [(DATA_FILE, 4096), (META_FILE, 100)])
def test_a_file_that_ends_early_is_no_layer(
    layer: Path, tmp_path: Path, name: str, kept: int
) -> None:
    path = layer / name
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(IntegrityError):
        mount_layer(layer, tmp_path)


def test_nothing_that_is_mounted_is_no_error(tmp_path: Path) -> None:
    assert unmount(tmp_path) is False
