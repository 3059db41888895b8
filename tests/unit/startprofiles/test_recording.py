"""Pages that were read are told by file and by where they lie in the layer's data."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.fixtures.layers import image_of, member, open_bytes, tar_of
from zeropull.erofs.reader import MetadataImage
from zeropull.layers.layout import DATA_FILE, META_FILE, layer_directory
from zeropull.layers.pull import pull_layers
from zeropull.startprofiles.profile import PAGE_BYTES, ProfileFile
from zeropull.startprofiles.recording import (
    MountedLayer,
    StartRecorder,
    Touch,
    place_in_files,
    resident_pages,
)

FIRST, SECOND = os.urandom(3 * PAGE_BYTES), os.urandom(5 * PAGE_BYTES + 7)
IMAGE, BLOBS = image_of([tar_of(member("first", data=FIRST), member("second", data=SECOND))])


@pytest.fixture
def layer(tmp_path: Path) -> MountedLayer:
    """`mount` is a folder with the same files: page caches of folders are read alike."""
    asyncio.run(
        pull_layers(
            IMAGE, [0], BLOBS, tmp_path, lambda _: None, open_blob=open_bytes, in_processes=False
        )
    )
    mount = tmp_path / "mount"
    mount.mkdir()
    return MountedLayer(IMAGE.chain_ids[0], layer_directory(tmp_path, IMAGE.chain_ids[0]), mount)


def nids(layer: MountedLayer) -> dict[bytes, int]:
    image = MetadataImage((layer.directory / META_FILE).read_bytes())
    return dict(image.entries(image.root))


def test_touched_pages_are_found_in_the_data_file(layer: MountedLayer) -> None:
    second = nids(layer)[b"second"]
    files, runs = place_in_files([layer], [Touch(0, second, 1, 2), Touch(0, second, 5, 100)])
    assert files == (ProfileFile(0, b"second"),)
    data = (layer.directory / DATA_FILE).read_bytes()
    read = [(run.page, page) for run in runs for page in range(run.pages)]
    assert [page + more for page, more in read] == [1, 2, 5], "nothing behind the end of the file"
    for run in runs:
        content = data[run.start * PAGE_BYTES :][: run.pages * PAGE_BYTES]
        assert content.startswith(SECOND[run.page * PAGE_BYTES :][: run.pages * PAGE_BYTES])


def test_pages_of_files_that_the_layer_does_not_have_are_left_out(layer: MountedLayer) -> None:
    unknown = max(nids(layer).values()) + 1000
    assert place_in_files([layer], [Touch(0, unknown, 0, 1)]) == ((), [])


def test_resident_pages_are_those_of_regular_files_with_content(layer: MountedLayer) -> None:
    read = layer.mount / "read"
    read.write_bytes(bytes(3 * PAGE_BYTES))
    (layer.mount / "empty").touch()
    (layer.mount / "link").symlink_to(read)
    (layer.mount / "again").hardlink_to(read)
    found = list(resident_pages([layer]))
    assert {(touch.layer, touch.nid) for touch in found} == {(0, read.stat().st_ino)}
    assert sum(touch.pages for touch in found) == 3, "a file with two names counts once"


def test_without_tracefs_a_recording_is_a_set(layer: MountedLayer, tmp_path: Path) -> None:
    recorder = StartRecorder("test", "sha256:m", [layer], tracefs=tmp_path / "none")
    recorder.begin()
    profile = recorder.finish()
    assert (profile.manifest_digest, profile.ordered) == ("sha256:m", False)
    assert profile.chain_ids == tuple(IMAGE.chain_ids)
    recorder.cancel()
