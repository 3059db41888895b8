"""Room on the disk that is kept for the state alone.

On a full disk the state must still be written: endpoints are deleted, instances replaced. A file
holds the room for that; it is given up when the disk is full, and taken again when there is room.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from zeropull.telemetry import get_logger

RESERVE_BYTES = 16 << 20
"""SQLite's log of changes (4 MiB), what it adds to its file, and its index of that log."""
FULL_BYTES = 2 << 20
"""A disk with less free than this is full: a transaction may need so much."""

log = get_logger(__name__)


class DiskReserve:
    """`check` often; a disk counts as low from when the reserve is given up until it is back."""

    def __init__(self, path: Path, size_bytes: int = RESERVE_BYTES) -> None:
        self._path = path
        self._is_kept = False
        self._size_bytes = size_bytes
        with contextlib.suppress(FileNotFoundError):
            # A process that was killed while it took the room has left a part of it.
            self._is_kept = path.stat().st_size >= size_bytes

    @property
    def is_low(self) -> bool:
        return not self._is_kept

    def free_bytes(self) -> int:
        """On the disk of the state, without the reserve; as `df` says it. Of the blocks that are
        free beyond that, ext4 gives some to nobody."""
        found = os.statvfs(self._path.parent)
        return found.f_frsize * found.f_bavail

    def shortage(self) -> str:
        return (
            f"the disk of {self._path.parent} is full ({self.free_bytes():,} bytes are free, "
            f"{2 * self._size_bytes:,} are needed): nothing is created until some of it is free; "
            "delete endpoints or other files"
        )

    def check(self) -> None:
        """Give the reserve up when the disk is full, take it again when there is room."""
        free_bytes = self.free_bytes()
        if self._is_kept and free_bytes < FULL_BYTES:
            self.give_up()
        elif not self._is_kept and free_bytes >= 2 * self._size_bytes:
            self._take()

    def give_up(self) -> bool:
        """False when it is gone already."""
        if not self._is_kept:
            return False
        self._is_kept = False
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        log.error(
            "the disk of the state is full: nothing is created, endpoints can be deleted",
            path=str(self._path.parent),
            reserve_bytes=self._size_bytes,
        )
        return True

    def _take(self) -> None:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._size_bytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("no room is reserved for the state", path=str(self._path), error=str(error))
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            return
        self._is_kept = True
        log.info("room is reserved for the state", bytes=self._size_bytes)
