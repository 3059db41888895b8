"""Start profiles recorded over real mounts, by tracepoints and by mincore, and read ahead again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.layers import image_of, member, open_bytes, tar_of
from zeropull.layers.layout import DATA_FILE, layer_directory
from zeropull.layers.mount import mount_layer, unmount
from zeropull.layers.pull import pull_layers
from zeropull.linux import mounts
from zeropull.linux.tracefs import remove_instances
from zeropull.startprofiles.profile import PageRun, ProfileFile, StartProfile
from zeropull.startprofiles.recording import MountedLayer, StartRecorder, resident_pages
from zeropull.startprofiles.warming import read_ahead, verify_profile

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

PAGE = 4096
BLOCK = 256 << 10


@dataclass
class Mounted:
    manifest_digest: str
    layers: list[MountedLayer]

    def directory(self, chain_id: str) -> Path | None:
        return next(each.directory for each in self.layers if each.chain_id == chain_id)

    def read(self, layer: int, name: str, page: int) -> None:
        """One page, without the kernel's read-ahead."""
        descriptor = os.open(self.layers[layer].mount / name, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            assert os.pread(descriptor, 10, page * PAGE)
        finally:
            os.close(descriptor)

    def bytes_of(self, profile: StartProfile, run: PageRun) -> bytes:
        directory = self.directory(profile.chain_ids[profile.files[run.file].layer])
        assert directory is not None
        with (directory / DATA_FILE).open("rb") as file:
            file.seek(run.start * PAGE)
            return file.read(run.pages * PAGE)


def places(profile: StartProfile) -> list[tuple[str, int]]:
    """File and page of the runs, all of one page."""
    assert {run.pages for run in profile.runs} == {1}
    return [(profile.files[run.file].path.decode(), run.page) for run in profile.runs]


CONTENT = random.Random(1).randbytes(3 * BLOCK)


@pytest.fixture
def mounted() -> Iterator[Mounted]:
    """Two layers; /big of the lower one has pages that are all different."""
    image, blobs = image_of(
        [
            tar_of(member("small", data=b"s" * 10), member("big", data=CONTENT)),
            tar_of(
                member("upper", data=b"u" * 3 * PAGE),
                member("link", tarfile.SYMTYPE, linkname="upper"),
                member("pipe", tarfile.FIFOTYPE),
            ),
        ]
    )
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="zp-profile-"))
        stack.callback(shutil.rmtree, folder)
        sources: list[Any] = list(blobs)
        pulled = pull_layers(
            image, [0, 1], sources, folder / "layers", lambda _: None, open_blob=open_bytes
        )
        asyncio.run(pulled)
        layers = []
        for number, chain_id in enumerate(image.chain_ids):
            target = folder / f"m{number}"
            target.mkdir()
            directory = layer_directory(folder / "layers", chain_id)
            mount_layer(directory, target)
            stack.callback(unmount, target)
            layers.append(MountedLayer(chain_id, directory, target))
        yield Mounted(image.manifest_digest, layers)


@pytest.fixture
def tracefs() -> Iterator[Path]:
    """A tracefs of the test's own; the kernel has one, so instances need names of their own."""
    folder = Path(tempfile.mkdtemp(prefix="zp-tracefs-"))
    try:
        mounts.mount("tracefs", folder, "tracefs")
    except OSError:
        folder.rmdir()
        pytest.skip("no tracefs here")
    try:
        if not (folder / "events/erofs/erofs_readahead").is_dir():
            pytest.skip("this kernel has no erofs tracepoints")
        yield folder
    finally:
        unmount(folder)
        folder.rmdir()


def test_tracepoints_give_the_pages_in_order(mounted: Mounted, tracefs: Path) -> None:
    name = f"zptest-{os.getpid()}"
    recorder = StartRecorder(name, mounted.manifest_digest, mounted.layers, tracefs=tracefs)
    recorder.begin()
    mounted.read(0, "big", 100)
    mounted.read(1, "upper", 1)
    mounted.read(0, "big", 7)
    profile = recorder.finish()
    assert profile.ordered
    assert places(profile) == [("big", 100), ("upper", 1), ("big", 7)]
    for run, page in zip((profile.runs[0], profile.runs[2]), (100, 7), strict=True):
        assert mounted.bytes_of(profile, run) == CONTENT[page * PAGE : (page + 1) * PAGE]
    assert not (tracefs / "instances" / name).exists()


def test_without_a_mounted_tracefs_it_has_one_of_its_own(mounted: Mounted, tracefs: Path) -> None:
    name = f"zptest-{os.getpid()}"
    recorder = StartRecorder(name, mounted.manifest_digest, mounted.layers)
    recorder.begin()
    assert (tracefs / "instances" / name).is_dir()
    mounted.read(0, "big", 100)
    profile = recorder.finish()
    assert profile.ordered
    assert places(profile) == [("big", 100)]
    assert not (tracefs / "instances" / name).exists()


def test_without_tracefs_mincore_gives_the_set(mounted: Mounted, tmp_path: Path) -> None:
    recorder = StartRecorder("none", mounted.manifest_digest, mounted.layers, tracefs=tmp_path)
    recorder.begin()
    mounted.read(0, "big", 7)
    mounted.read(0, "big", 100)
    mounted.read(1, "upper", 2)
    profile = recorder.finish()
    assert not profile.ordered
    assert profile.manifest_digest == mounted.manifest_digest
    assert places(profile) == [("big", 7), ("big", 100), ("upper", 2)]
    assert mounted.bytes_of(profile, profile.runs[0]) == CONTENT[7 * PAGE : 8 * PAGE]


def test_a_cancelled_recording_leaves_nothing(mounted: Mounted, tracefs: Path) -> None:
    name = f"zptest-{os.getpid()}"
    recorder = StartRecorder(name, mounted.manifest_digest, mounted.layers, tracefs=tracefs)
    recorder.begin()
    assert (tracefs / "instances" / name).is_dir()
    recorder.cancel()
    recorder.cancel()
    assert not (tracefs / "instances" / name).exists()


def test_a_trace_that_another_process_holds_is_removed_when_it_lets_go(
    mounted: Mounted, tracefs: Path
) -> None:
    """As one does for a moment that was forked while the trace was read."""
    name = f"zptest-{os.getpid()}"
    recorder = StartRecorder(name, mounted.manifest_digest, mounted.layers, tracefs=tracefs)
    recorder.begin()
    folder = tracefs / "instances" / name
    trace = (folder / "trace").open()
    with pytest.raises(OSError, match="busy"):
        folder.rmdir()
    removing = threading.Thread(target=recorder.cancel)
    removing.start()
    removing.join(0.2)
    assert removing.is_alive()
    trace.close()
    removing.join(10)
    assert not folder.exists()


def test_what_a_crash_left_of_traces_is_removed_by_its_name(tracefs: Path) -> None:
    mine, other = (tracefs / "instances" / f"zptest-{os.getpid()}{end}" for end in ("-1", "0-1"))
    for folder in (mine, other):
        folder.mkdir()
    try:
        remove_instances(f"zptest-{os.getpid()}-")
        assert not mine.exists()
        assert other.exists()
    finally:
        other.rmdir()


def profile_of(mounted: Mounted, *runs: PageRun, extra: bytes = b"upper") -> StartProfile:
    """Its files are `big` of the lower layer, from page 1 of the data file on, and `extra`."""
    chains = tuple(layer.chain_id for layer in mounted.layers)
    files = (ProfileFile(0, b"big"), ProfileFile(1, extra))
    return StartProfile(mounted.manifest_digest, chains, files, runs, ordered=True)


def resident(mounted: Mounted) -> list[tuple[int, int, int]]:
    """(layer, first page, pages) that the page cache has of the mounted files."""
    return [(each.layer, each.page, each.pages) for each in resident_pages(mounted.layers)]


def test_reading_ahead_brings_the_pages_of_the_mounted_files_and_no_others(
    mounted: Mounted,
) -> None:
    assert resident(mounted) == []
    profile = profile_of(mounted, PageRun(0, 64, 4, 65), PageRun(1, 0, 1, 0), PageRun(0, 1, 2, 2))
    mounts = [layer.mount for layer in mounted.layers]
    assert read_ahead(profile, mounts, threading.Event()) == 7 * PAGE
    assert resident(mounted) == [(0, 1, 2), (0, 64, 4), (1, 0, 1)]


def test_reading_ahead_brings_all_of_a_long_run(mounted: Mounted) -> None:
    profile = profile_of(mounted, PageRun(0, 5, 180, 6))
    mounts = [layer.mount for layer in mounted.layers]
    assert read_ahead(profile, mounts, threading.Event()) == 180 * PAGE
    assert resident(mounted) == [(0, 5, 180)]


@pytest.mark.parametrize(
    "path", [b"../m0/big", b"/etc/passwd", b"link", b"absent", b"pipe", b"a\0b"]
)
def test_reading_ahead_opens_nothing_but_regular_files_of_the_layer(
    mounted: Mounted, path: bytes
) -> None:
    profile = profile_of(mounted, PageRun(1, 0, 1, 0), PageRun(0, 7, 1, 8), extra=path)
    mounts = [layer.mount for layer in mounted.layers]
    assert read_ahead(profile, mounts, threading.Event()) == PAGE
    assert resident(mounted) == [(0, 7, 1)]


def test_reading_ahead_stops_when_told(mounted: Mounted) -> None:
    stop = threading.Event()
    stop.set()
    profile = profile_of(mounted, PageRun(0, 64, 4, 65))
    assert read_ahead(profile, [layer.mount for layer in mounted.layers], stop) == 0
    assert verify_profile(profile, mounted.directory, stop).verified_blocks == 0


def test_the_blocks_of_the_profile_are_verified_where_layers_are_here(mounted: Mounted) -> None:
    profile = profile_of(mounted, PageRun(0, 64, 4, 65), PageRun(1, 0, 1, 0), PageRun(0, 1, 2, 2))
    done = verify_profile(profile, mounted.directory, threading.Event())
    assert (done.verified_blocks, done.bad) == (3, {})
    upper = mounted.layers[1]
    only_upper = {upper.chain_id: upper.directory}
    assert verify_profile(profile, only_upper.get, threading.Event()).verified_blocks == 1


def test_a_damaged_block_of_the_profile_is_told(mounted: Mounted) -> None:
    layer = mounted.layers[0]
    with (layer.directory / DATA_FILE).open("r+b") as file:
        file.seek(BLOCK + 5)
        file.write(b"?!")
    profile = profile_of(mounted, PageRun(0, 64, 4, 65), PageRun(1, 0, 1, 0))
    done = verify_profile(profile, mounted.directory, threading.Event())
    assert list(done.bad) == [layer.chain_id]
    assert "block 1" in done.bad[layer.chain_id]
