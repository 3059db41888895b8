"""Files that are written whole or not at all, also when the machine loses power meanwhile.

rename(2) replaces a name in one step. fsync(2) of the file before it, and of the folder after it,
bring content and name to the disk.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

from zeropull.stopping import check_stop

OWNER_ONLY = 0o600
EVERYBODY_READS = 0o644
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
