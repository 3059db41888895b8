"""Disk usage of a directory tree, as containerd counts it: blocks in use, each inode once."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

from zeropull.containerd.snapshots import SnapshotUsage

_SECTOR_BYTES = 512


class Cancelled(Exception):
    """The caller does not want the answer any more."""


def measure_usage(directory: Path, stop: threading.Event) -> SnapshotUsage:
    """Walk `directory`. A file that vanishes meanwhile is not counted.

    Raises:
        Cancelled: `stop` was set; the walk ends at the next directory.
    """
    seen: set[tuple[int, int]] = set()
    size = 0
    pending = [os.fspath(directory)]
    with suppress(FileNotFoundError):
        size += _count(directory.lstat(), seen)
    while pending:
        if stop.is_set():
            raise Cancelled
        with suppress(FileNotFoundError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    size += _count(entry.stat(follow_symlinks=False), seen)
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
    return SnapshotUsage(size_bytes=size, inodes=len(seen))


def _count(status: os.stat_result, seen: set[tuple[int, int]]) -> int:
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        return 0
    seen.add(identity)
    return status.st_blocks * _SECTOR_BYTES
