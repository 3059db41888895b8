"""Start profiles recorded over real mounts, by tracepoints and by mincore, and read ahead again."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.layers import image_of, member, open_bytes, tar_of
from zeropull.imagecache.convert import pull_layers
from zeropull.imagecache.layout import DATA_FILE, layer_directory
from zeropull.imagecache.mount import mount_layer, unmount
from zeropull.imagecache.profile import PageRun, StartProfile
from zeropull.imagecache.recording import MountedLayer, StartRecorder
from zeropull.imagecache.warming import warm

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

PAGE = 4096
BLOCK = 256 << 10
_libc = ctypes.CDLL(None, use_errno=True)


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
        directory = self.directory(profile.chain_ids[run.layer])
        assert directory is not None
        with (directory / DATA_FILE).open("rb") as file:
            file.seek(run.start * PAGE)
            return file.read(run.pages * PAGE)


CONTENT = random.Random(1).randbytes(3 * BLOCK)


@pytest.fixture
def mounted() -> Iterator[Mounted]:
    """Two layers; /big of the lower one has pages that are all different."""
    image, blobs = image_of(
        [
            tar_of(member("small", data=b"s" * 10), member("big", data=CONTENT)),
            tar_of(member("upper", data=b"u" * 3 * PAGE)),
        ]
    )
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="zp-profile-", dir="/tmp"))
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
    if _libc.mount(b"tracefs", os.fsencode(folder), b"tracefs", 0, None) != 0:
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
    assert [(run.layer, run.pages) for run in profile.runs] == [(0, 1), (1, 1), (0, 1)]
    for run, page in zip((profile.runs[0], profile.runs[2]), (100, 7), strict=True):
        assert mounted.bytes_of(profile, run) == CONTENT[page * PAGE : (page + 1) * PAGE]
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
    assert [(run.layer, run.pages) for run in profile.runs] == [(0, 1), (0, 1), (1, 1)]
    assert mounted.bytes_of(profile, profile.runs[0]) == CONTENT[7 * PAGE : 8 * PAGE]


def test_a_cancelled_recording_leaves_nothing(mounted: Mounted, tracefs: Path) -> None:
    name = f"zptest-{os.getpid()}"
    recorder = StartRecorder(name, mounted.manifest_digest, mounted.layers, tracefs=tracefs)
    recorder.begin()
    assert (tracefs / "instances" / name).is_dir()
    recorder.cancel()
    recorder.cancel()
    assert not (tracefs / "instances" / name).exists()


def profile_of(mounted: Mounted, *runs: PageRun) -> StartProfile:
    chains = tuple(layer.chain_id for layer in mounted.layers)
    return StartProfile(mounted.manifest_digest, chains, runs, ordered=True)


def test_warming_reads_the_runs_and_verifies_their_blocks(mounted: Mounted) -> None:
    profile = profile_of(mounted, PageRun(0, 64, 4), PageRun(1, 0, 1), PageRun(0, 1, 2))
    done = warm(profile, mounted.directory, threading.Event())
    assert (done.read_bytes, done.verified_blocks, done.bad) == (7 * PAGE, 3, {})


def test_warming_tells_of_a_damaged_layer(mounted: Mounted) -> None:
    layer = mounted.layers[0]
    with (layer.directory / DATA_FILE).open("r+b") as file:
        file.seek(BLOCK + 5)
        file.write(b"?!")
    profile = profile_of(mounted, PageRun(0, 64, 4), PageRun(1, 0, 1))
    done = warm(profile, mounted.directory, threading.Event())
    assert list(done.bad) == [layer.chain_id]
    assert "block 1" in done.bad[layer.chain_id]


def test_warming_passes_over_layers_that_are_not_here_and_stops_when_told(
    mounted: Mounted,
) -> None:
    profile = profile_of(mounted, PageRun(0, 64, 4), PageRun(1, 0, 1))
    upper = mounted.layers[1]
    only_upper = {upper.chain_id: upper.directory}
    done = warm(profile, only_upper.get, threading.Event())
    assert (done.read_bytes, done.verified_blocks) == (PAGE, 1)
    stop = threading.Event()
    stop.set()
    assert warm(profile, mounted.directory, stop).read_bytes == 0
