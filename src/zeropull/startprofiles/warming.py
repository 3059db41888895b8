"""Reads a start profile's pages ahead, in its order, then verifies the blocks that they lie in.

Pages are read through the mounted layers: what a container finds there costs it no copy any more,
and nothing beside the profile is read, as the read-ahead in the data files would.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zeropull.errors import IntegrityError
from zeropull.layers.verify import verify_blocks
from zeropull.linux.files import open_beneath
from zeropull.startprofiles.profile import PAGE_BYTES, PageRun, ProfileFile, StartProfile

# Asked for and not there yet: enough to keep a disk busy, and little enough for what the container
# asks for meanwhile to come soon (20 ms on a volume of 200 MB/s).
WINDOW_BYTES = 4 << 20
_WINDOW_RUNS = 64
_OPEN_FILES = 128  # more than runs in the window, so that their files are open
# One call reads at most the mount's read-ahead, 128 KiB, and forgets about the rest.
_PIECE_BYTES = 128 << 10
_BATCH_BLOCKS = 32  # between two looks at `stop`: 40 ms on a volume of 200 MB/s


@dataclass(frozen=True, slots=True)
class Warmed:
    """`bad`: chain IDs of layers with a wrong block, and what was wrong."""

    verified_blocks: int
    bad: dict[str, str]


def read_ahead(profile: StartProfile, mounts: Sequence[Path], stop: threading.Event) -> int:
    """Read the profile's pages into the page cache of the layers mounted at `mounts`, the lowest
    first; returns the bytes. Blocking; for a thread beside the container's set-up. Setting `stop`
    ends it early.
    """
    read_bytes = 0
    with _Files(mounts, profile.files) as files:
        window: deque[tuple[int, int, int]] = deque()
        waiting_bytes = 0
        for run in profile.runs:
            if stop.is_set():
                break
            descriptor = files.open(run.file)
            if descriptor is None:
                continue
            length = run.pages * PAGE_BYTES
            _ask_for(descriptor, run)
            window.append((descriptor, (run.page + run.pages - 1) * PAGE_BYTES, length))
            waiting_bytes += length
            read_bytes += length
            while window and (waiting_bytes > WINDOW_BYTES or len(window) > _WINDOW_RUNS):
                waiting_bytes -= _wait_for(*window.popleft())
        while window and not stop.is_set():
            _wait_for(*window.popleft())
    return read_bytes


def verify_profile(
    profile: StartProfile,
    layer_directory: Callable[[str], Path | None],
    stop: threading.Event,
    wait_for_disk: Callable[[], None] = lambda: None,
) -> Warmed:
    """Verify the blocks in which the profile's pages lie. `layer_directory` gives the directory of
    a chain ID, None when it is not here. Blocking; setting `stop` ends it early. `wait_for_disk` is
    called before some blocks are read, and may wait while others need the disk more."""
    verified = 0
    bad: dict[str, str] = {}
    for number, chain_id in enumerate(profile.chain_ids):
        directory = layer_directory(chain_id)
        if directory is None:
            continue
        blocks = profile.blocks(number)
        try:
            for start in range(0, len(blocks), _BATCH_BLOCKS):
                wait_for_disk()
                if stop.is_set():
                    break
                verified += verify_blocks(directory, blocks[start : start + _BATCH_BLOCKS])
        except IntegrityError as error:
            bad[chain_id] = str(error)
    return Warmed(verified, bad)


def _ask_for(descriptor: int, run: PageRun) -> None:
    end = (run.page + run.pages) * PAGE_BYTES
    for offset in range(run.page * PAGE_BYTES, end, _PIECE_BYTES):
        length = min(_PIECE_BYTES, end - offset)
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)


def _wait_for(descriptor: int, offset: int, length: int) -> int:
    """Until the page at `offset` is there: its run was asked for in order."""
    with contextlib.suppress(OSError):  # a block that cannot be read: the container will see
        os.pread(descriptor, 1, offset)
    return length


class _Files:
    """The profile's files, opened below their layers' mounts and kept open while they are in use.

    Nothing vouches for the profile, so no link is followed and nothing but a regular file is
    opened."""

    def __init__(self, mounts: Sequence[Path], files: Sequence[ProfileFile]) -> None:
        self._mounts = mounts
        self._files = files
        self._roots: dict[int, int] = {}
        self._open: OrderedDict[int, int | None] = OrderedDict()

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in [*self._roots.values(), *self._open.values()]:
            if descriptor is not None:
                os.close(descriptor)

    def open(self, number: int) -> int | None:
        """None: it is not there."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        while len(self._open) >= _OPEN_FILES:
            _, oldest = self._open.popitem(last=False)
            if oldest is not None:
                os.close(oldest)
        self._open[number] = self._open_file(self._files[number])
        return self._open[number]

    def _open_file(self, file: ProfileFile) -> int | None:
        try:
            if file.layer not in self._roots:
                flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
                self._roots[file.layer] = os.open(self._mounts[file.layer], flags)
            flags = os.O_PATH | os.O_NOFOLLOW
            found = open_beneath(self._roots[file.layer], file.path, flags)
        except (OSError, ValueError):
            return None
        try:
            if not stat.S_ISREG(os.fstat(found).st_mode):
                return None
            descriptor = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            return descriptor
        except OSError:
            return None
        finally:
            os.close(found)
