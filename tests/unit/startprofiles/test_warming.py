"""A profile's pages are read ahead and its blocks verified; a strange profile harms nobody."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from tests.fixtures.layers import image_of, member, open_bytes, tar_of
from zeropull.layers.layout import BLOCK_BYTES, DATA_FILE, layer_directory
from zeropull.layers.pull import pull_layers
from zeropull.startprofiles.profile import PAGE_BYTES, PageRun, ProfileFile, StartProfile
from zeropull.startprofiles.warming import Warmed, read_ahead, verify_profile

IMAGE, BLOBS = image_of([tar_of(member("weights", data=os.urandom(3 * BLOCK_BYTES)))])
GONE = f"sha256:{'0' * 64}"


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    asyncio.run(
        pull_layers(
            IMAGE, [0], BLOBS, tmp_path, lambda _: None, open_blob=open_bytes, in_processes=False
        )
    )
    return layer_directory(tmp_path, IMAGE.chain_ids[0])


def profile(*runs: PageRun, path: bytes = b"weights", chain_id: str = "") -> StartProfile:
    chain_ids = (chain_id or IMAGE.chain_ids[0],)
    return StartProfile("sha256:m", chain_ids, (ProfileFile(0, path),), runs, ordered=True)


def per_block(block: int) -> PageRun:
    """The first page of a block."""
    page = block * BLOCK_BYTES // PAGE_BYTES
    return PageRun(0, page, 1, page)


def test_only_blocks_of_the_profile_are_verified(layer: Path) -> None:
    with (layer / DATA_FILE).open("r+b") as data:
        data.seek(BLOCK_BYTES)
        data.write(b"damage")
    looked = verify_profile(profile(per_block(0), per_block(2)), lambda _: layer, threading.Event())
    assert looked == Warmed(2, {})
    looked = verify_profile(profile(per_block(1)), lambda _: layer, threading.Event())
    assert looked.verified_blocks == 0
    assert looked.bad.keys() == {IMAGE.chain_ids[0]}


def test_a_layer_that_is_not_here_is_left_out(layer: Path) -> None:
    of_nobody = profile(per_block(0), chain_id=GONE)
    assert verify_profile(of_nobody, lambda _: None, threading.Event()) == Warmed(0, {})


def test_a_stop_ends_both_before_the_next_piece(layer: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    looked = verify_profile(profile(per_block(0)), lambda _: layer, stop, stop.set)
    assert looked == Warmed(0, {})
    (tmp_path / "weights").write_bytes(bytes(PAGE_BYTES))
    assert read_ahead(profile(per_block(0)), [tmp_path], stop) == 0


def test_pages_of_regular_files_are_read_ahead(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(8 * PAGE_BYTES))
    runs = (PageRun(0, 0, 2, 0), PageRun(0, 5, 1, 5))
    assert read_ahead(profile(*runs), [tmp_path], threading.Event()) == 3 * PAGE_BYTES


@pytest.mark.parametrize("path", [b"link", b"pipe", b"../outside", b"nothing", b"a\0b", b"."])
def test_nothing_but_a_regular_file_of_the_layer_is_opened(tmp_path: Path, path: bytes) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    (tmp_path / "outside").write_bytes(bytes(PAGE_BYTES))
    (mount / "link").symlink_to(tmp_path / "outside")
    os.mkfifo(mount / "pipe")
    strange = profile(PageRun(0, 0, 1, 0), path=path)
    assert read_ahead(strange, [mount], threading.Event()) == 0


def test_more_files_than_may_be_open_are_read(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(300):
        (tmp_path / f"f{number}").write_bytes(bytes(PAGE_BYTES))
    files = tuple(ProfileFile(0, b"f%d" % number) for number in range(300))
    runs = tuple(PageRun(number, 0, 1, 0) for number in (*range(300), 0))
    made = StartProfile("sha256:m", tuple(IMAGE.chain_ids), files, runs, ordered=True)
    assert read_ahead(made, [tmp_path], threading.Event()) == 301 * PAGE_BYTES
    assert len(list(Path("/proc/self/fd").iterdir())) == before
