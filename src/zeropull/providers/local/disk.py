"""The instance's own disk folder: linking layers out of it, and removing it safely."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from pathlib import Path

from zeropull.errors import Conflict, DiskFull, NotFound, Unavailable
from zeropull.linux.files import copy_file, sync_folder
from zeropull.linux.mounts import mounts_below
from zeropull.linux.removal import remove_tree, try_remove_tree
from zeropull.stopping import check_stop

_FICLONE = 0x40049409


def read_bounded(path: Path, bytes_max: int) -> bytes | None:
    """The content; None when there is no such plain file, or it is larger than `bytes_max`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(bytes_max + 1)
    return content if len(content) <= bytes_max else None


def collect_directory(source: Path, into: Path, stop: threading.Event | None = None) -> None:
    """Make `into` with every file of the flat directory `source`: linked, else copied.

    `source` is published and never changes, so that sharing its files is safe. `stop`, once set,
    ends it soon, and `into` is gone again.

    Raises:
        Unavailable: it was stopped.
        NotFound: there is no such directory.
        DiskFull: no room for a copy, with the arithmetic.
    """
    if not source.is_dir():
        raise NotFound(f"layer {source.name} is not in the node's layer store")
    into.mkdir(mode=0o755, parents=True)
    try:
        with os.scandir(source) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    _link_or_copy(Path(entry.path), into / entry.name, stop)
        sync_folder(into)
    except (OSError, Unavailable) as error:
        try_remove_tree(into)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            needed, free = used_bytes(source), shutil.disk_usage(into.parent).free
            raise DiskFull(
                f"no room for layer {source.name} in {into.parent}: it has {needed} bytes, "
                f"{free} bytes are free: make room"
            ) from error
        raise


def remove_folder(folder: Path) -> None:
    """Remove a folder and all in it, never what is mounted below it. Idempotent.

    Raises:
        Conflict: something is still mounted below the folder; nothing was removed.
        Unavailable: a file cannot be removed now; what could be is gone.
    """
    if mounts := mounts_below(folder):
        raise Conflict(f"{folder} is not removed: {mounts[0].target} is still mounted")
    if folder.is_dir() and not folder.is_symlink():
        try:
            remove_tree(folder)
        except OSError as error:
            raise Unavailable(f"{folder} cannot be removed: {error.strerror}") from error


def used_bytes(folder: Path) -> int:
    """Bytes on disk below `folder`, one file system only, every hard-linked file once."""
    total = 0
    seen: set[int] = set()
    try:
        device = folder.stat().st_dev
    except FileNotFoundError:
        return 0
    pending = [folder]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if status.st_dev != device or status.st_ino in seen:
                        continue
                    seen.add(status.st_ino)
                    total += status.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(Path(entry.path))
        except FileNotFoundError:
            continue
    return total


def _link_or_copy(source: Path, target: Path, stop: threading.Event | None) -> None:
    check_stop(stop)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM):
            raise
        _copy(source, target, stop)


def _copy(source: Path, target: Path, stop: threading.Event | None) -> None:
    if not _clone(source, target):
        copy_file(source, target, stop)
    shutil.copystat(source, target)


def _clone(source: Path, target: Path) -> bool:
    """Share the blocks where the file system can; else `target` is not there."""
    with source.open("rb") as reader, target.open("xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError:
            target.unlink()
            return False
        os.fsync(writer.fileno())
    return True
