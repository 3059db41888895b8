"""What goes into a generation is linked or copied, and is what its digests say."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fixtures.layers import image_of, member, open_bytes, tar_of
from zeropull.errors import DiskFull, IntegrityError, Unavailable
from zeropull.imagecache.building import (
    LayerSource,
    bring_layers,
    cached_image,
    check_free_space,
    write_blobs,
)
from zeropull.imagecache.layout import generation_blob, generation_layer, generation_profile
from zeropull.layers.layout import DATA_FILE, LAYER_FILE, layer_directory, read_layer_index
from zeropull.layers.pull import pull_layers
from zeropull.oci.digests import digest_of

IMAGE, BLOBS = image_of([tar_of(member("file", data=b"x" * 9000))])


@pytest.fixture
def layer(tmp_path: Path) -> LayerSource:
    """The image's only layer, as a node has it."""
    store = tmp_path / "node"
    asyncio.run(
        pull_layers(
            IMAGE, [0], BLOBS, store, lambda _: None, open_blob=open_bytes, in_processes=False
        )
    )
    folder = layer_directory(store, IMAGE.chain_ids[0])
    return LayerSource(folder, read_layer_index(folder), is_published=False)


@pytest.fixture
def building(tmp_path: Path) -> Path:
    folder = tmp_path / "building"
    folder.mkdir()
    return folder


def test_a_layer_on_the_same_disk_is_linked(layer: LayerSource, building: Path) -> None:
    chain_id = IMAGE.chain_ids[0]
    digests = bring_layers(building, {chain_id: layer}, None)
    there = generation_layer(building, chain_id)
    assert digests == {chain_id: digest_of((there / LAYER_FILE).read_bytes())}
    assert (there / DATA_FILE).samefile(layer.directory / DATA_FILE)


def test_a_layer_that_changed_since_its_index_was_read_is_refused(
    layer: LayerSource, building: Path
) -> None:
    stale = replace(layer, index=replace(layer.index, files=7))
    with pytest.raises(IntegrityError, match="changed while it was collected"):
        bring_layers(building, {IMAGE.chain_ids[0]: stale}, None)


def test_a_stop_ends_the_collecting(layer: LayerSource, building: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Unavailable):
        bring_layers(building, {IMAGE.chain_ids[0]: layer}, stop)


def test_only_layers_of_other_disks_need_room(layer: LayerSource, tmp_path: Path) -> None:
    huge = replace(layer.index, data=replace(layer.index.data, size=1 << 60))
    check_free_space(tmp_path, "it", [LayerSource(tmp_path, huge, is_published=True)])
    elsewhere = LayerSource(Path("/proc"), huge, is_published=False)
    with pytest.raises(DiskFull, match=rf"the new generation needs {huge.stored_bytes} bytes"):
        check_free_space(tmp_path, "the new generation", [elsewhere])


def test_documents_lie_under_their_digests(building: Path) -> None:
    write_blobs(building, [IMAGE, IMAGE], {IMAGE.manifest_digest: b"{}"})
    assert generation_blob(building, IMAGE.manifest_digest).read_bytes() == IMAGE.manifest
    assert generation_blob(building, IMAGE.config_digest).read_bytes() == IMAGE.config
    assert generation_profile(building, IMAGE.manifest_digest).read_bytes() == b"{}"


def test_a_document_with_another_digest_is_refused(building: Path) -> None:
    with pytest.raises(IntegrityError, match="its bytes are not"):
        write_blobs(building, [replace(IMAGE, config=b"{}")], {})


def test_an_image_is_listed_with_its_layers() -> None:
    listed = cached_image(IMAGE)
    assert listed.chain_ids == tuple(IMAGE.chain_ids)
    assert (listed.manifest_digest, listed.config_digest) == (
        IMAGE.manifest_digest,
        IMAGE.config_digest,
    )
