"""Reads a start profile's pages ahead, in its order, and verifies the blocks that they lie in."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zeropull.errors import IntegrityError
from zeropull.imagecache.layout import DATA_FILE
from zeropull.imagecache.profile import PAGE_BYTES, StartProfile
from zeropull.imagecache.verify import verify_blocks

_BATCH_BLOCKS = 64  # between two looks at `stop`


@dataclass(frozen=True, slots=True)
class Warmed:
    """`bad`: chain IDs of layers with a wrong block, and what was wrong."""

    read_bytes: int
    verified_blocks: int
    bad: dict[str, str]


def warm(
    profile: StartProfile,
    layer_directory: Callable[[str], Path | None],
    stop: threading.Event,
) -> Warmed:
    """Blocking; for a thread beside the container's set-up. `layer_directory` gives the directory
    of a chain ID, None when it is not here. Setting `stop` ends it early.

    Reading is asked for first, all of it in order (POSIX_FADV_WILLNEED: no byte is copied), then
    the blocks are verified as they arrive: those have more pages than the profile.
    """
    read_bytes = verified = 0
    bad: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        files: dict[int, int] = {}
        directories: dict[int, Path] = {}
        for number, chain_id in enumerate(profile.chain_ids):
            directory = layer_directory(chain_id)
            with contextlib.suppress(FileNotFoundError):
                if directory is not None:
                    flags = os.O_RDONLY | os.O_CLOEXEC
                    files[number] = os.open(directory / DATA_FILE, flags)
                    directories[number] = directory
                    stack.callback(os.close, files[number])
        for run in profile.runs:
            if stop.is_set():
                break
            if run.layer in files:
                length = run.pages * PAGE_BYTES
                offset = run.start * PAGE_BYTES
                os.posix_fadvise(files[run.layer], offset, length, os.POSIX_FADV_WILLNEED)
                read_bytes += length
        for number, directory in directories.items():
            blocks = profile.blocks(number)
            try:
                for start in range(0, len(blocks), _BATCH_BLOCKS):
                    if stop.is_set():
                        break
                    verified += verify_blocks(directory, blocks[start : start + _BATCH_BLOCKS])
            except IntegrityError as error:
                bad[profile.chain_ids[number]] = str(error)
    return Warmed(read_bytes, verified, bad)
