"""Files that are written whole or not at all, also when the machine loses power meanwhile.

rename(2) replaces a name in one step. fsync(2) of the file before it, and of the folder after it,
bring content and name to the disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import struct
import threading
from pathlib import Path

from zeropull.linux import libc
from zeropull.stopping import check_stop

OWNER_ONLY = 0o600
EVERYBODY_READS = 0o644
_RACES_AT_MOST = 1000  # in a row, of one openat2
_OPENAT2 = 437  # the same number on every machine
_RESOLVE_NO_XDEV, _RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 1, 2, 4, 8
_COLLAPSE_RANGE = 0x08
_COPIED_BYTES = 4 << 20  # between two looks at the event
_SYNCED_BYTES = 64 << 20  # so that no fsync at the end keeps a stop waiting for long


def replace_file(
    path: Path, content: bytes | str, *, mode: int = OWNER_ONLY, is_durable: bool = True
) -> None:
    """Write `content` (text as UTF-8) to `path`: a reader finds the old file or the new one, whole.

    `mode` is the new file's, whatever the umask is. Without `is_durable` nothing is synced: the
    file survives a killed process, not a crash of the machine.

    Writers of the same file wait for each other. A killed writer leaves at most one file beside
    it, `.NAME.tmp`, which the next writer uses.

    Raises:
        OSError: nothing is replaced.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = _open_alone(temporary)
    with os.fdopen(descriptor, "wb") as file:
        try:
            os.fchmod(descriptor, mode)
            file.truncate()
            file.write(data)
            file.flush()
            if is_durable:
                os.fsync(descriptor)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    if is_durable:
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_file(source: Path, target: Path, stop: threading.Event | None) -> None:
    """Copy to the new file `target` and sync it.

    Raises:
        Unavailable: it was stopped; part of the file is there.
    """
    with source.open("rb") as reader, target.open("xb") as writer:
        unsynced = 0
        while chunk := reader.read(_COPIED_BYTES):
            check_stop(stop)
            writer.write(chunk)
            unsynced += len(chunk)
            if unsynced >= _SYNCED_BYTES:
                writer.flush()
                os.fdatasync(writer.fileno())
                unsynced = 0
        writer.flush()
        os.fsync(writer.fileno())


def open_beneath(folder: int, path: bytes | str, flags: int, *, follow_links: bool = False) -> int:
    """Open `path` below the folder that the descriptor `folder` is of; returns a descriptor.

    No part of the path may lead out of the folder, be a symbolic link or a mount point
    (openat2(2), Linux 5.6). With `follow_links`, links that stay below the folder are followed,
    and file systems that are mounted there are entered; those of /proc never are.

    Raises:
        OSError: ELOOP for a link, EXDEV for a way out, and as open(2).
        ValueError: the path has a NUL.
    """
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError(f"embedded NUL in {path!r}")
    strict = _RESOLVE_NO_MAGICLINKS if follow_links else _RESOLVE_NO_XDEV | _RESOLVE_NO_SYMLINKS
    resolve = _RESOLVE_BENEATH | strict
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, resolve)
    name = ctypes.c_char_p(encoded)
    for _ in range(_RACES_AT_MOST):
        # A rename or a mount anywhere on the machine, while ".." was resolved, gives EAGAIN.
        with contextlib.suppress(BlockingIOError):
            return libc.syscall(_OPENAT2, folder, name, how, ctypes.c_size_t(len(how)), about=path)
    return libc.syscall(_OPENAT2, folder, name, how, ctypes.c_size_t(len(how)), about=path)


def cut_front(descriptor: int, length: int) -> bool:
    """Take the first `length` bytes, whole blocks, off the front of a file that others append to.

    False where the file system cannot do it (btrfs, tmpfs): nothing is changed.
    """
    try:
        libc.call(
            "fallocate", descriptor, _COLLAPSE_RANGE, ctypes.c_int64(0), ctypes.c_int64(length)
        )
    except OSError:
        return False
    return True


def _open_alone(path: Path) -> int:
    """A descriptor of the file at `path`, made when missing, that no other writer has."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        descriptor = os.open(path, flags, OWNER_ONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_still(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # another writer has renamed it while we waited


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
