"""Writes data.erofs once, past the page cache, from reused aligned buffers, with block digests.

O_DIRECT because first-touch page-cache pages are dear: 3.5 GB/s against 0.5 GB/s were measured
on a virtual machine. Where a file system refuses it (EINVAL), the same code writes buffered.
"""

from __future__ import annotations

import errno
import mmap
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path

from zeropull.errors import DiskFull, Unavailable
from zeropull.layers.layout import BLOCK_BYTES, DIGEST_BYTES, digest_block

PAGE = 4096
BUFFER_BYTES = 2 << 20  # a multiple of BLOCK_BYTES; eight of them per layer in work
_BUFFERS = 8
_ZEROS = memoryview(bytes(PAGE))
_WRITERS = 2  # one hashes while the other one waits for the disk
# A layer unpacks to any size, and the control plane's own state may lie on the same disk.
_RESERVE_BYTES = 64 << 20
_RESERVE_SHARE = 50  # but no more than a 50th of a small disk

Pwrite = Callable[[int, memoryview, int], int]  # descriptor, bytes, offset -> count written


class DataFile:
    """A `zeropull.erofs.tar_layer.DataSink` over a new file.

    `finish` completes it; `close`, always and once, gives its threads and descriptor back.
    Threads of its own hash and write full buffers while the caller fills the next one.
    """

    def __init__(
        self,
        path: Path,
        stop: threading.Event,
        *,
        reserve_bytes: int | None = None,
        pwrite: Pwrite = os.pwrite,
    ) -> None:
        """`reserve_bytes` stay free on the disk; None: 64 MiB, or a 50th of a small disk."""
        self.path = path
        self.size = 0  # bytes handed in so far, padding included
        self._stop = stop
        self._reserve_bytes = reserve_bytes
        self._pwrite = pwrite
        self._digests: dict[int, bytes] = {}  # of each buffer, by its offset in the file
        self._handed = 0
        self._error: BaseException | None = None
        self._free: queue.SimpleQueue[mmap.mmap] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[tuple[mmap.mmap, int, int] | None] = queue.SimpleQueue()
        self._buffers = 1  # made so far; each costs the faults of its pages
        self._buffer = mmap.mmap(-1, BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._used = 0
        self._descriptor = _open(path)
        self._writers = [
            threading.Thread(target=self._write_all, name=f"layer-data-{number}", daemon=True)
            for number in range(_WRITERS)
        ]
        for writer in self._writers:
            writer.start()

    def begin(self) -> int:
        padding = -self._used % PAGE
        if padding:
            self._view[self._used : self._used + padding] = _ZEROS[:padding]
            self._used += padding
            self.size += padding
        return self.size // PAGE

    def write(self, data: memoryview) -> None:
        length, used = len(data), self._used
        if used + length <= BUFFER_BYTES:
            self._view[used : used + length] = data
            self._used = used + length
            self.size += length
            return
        position = 0
        while position < length:
            room = BUFFER_BYTES - self._used
            if not room:
                self._hand_over()
                continue
            part = min(room, length - position)
            self._view[self._used : self._used + part] = data[position : position + part]
            self._used += part
            position += part
        self.size += length

    def finish(self) -> bytes:
        """Pad and write what is left; returns the block digests. To fsync is the caller's.

        Raises:
            DiskFull: the file system has no room.
        """
        self.begin()
        if self._used:
            self._full.put((self._buffer, self._used, self._handed))
        self._join()
        self._check()
        return b"".join(self._digests[offset] for offset in sorted(self._digests))

    def close(self) -> None:
        """Stop writing what is not written yet; the file is the caller's to keep or to remove."""
        self._error = self._error or Unavailable("the conversion was stopped")
        self._join()
        os.close(self._descriptor)

    def _join(self) -> None:
        for _ in self._writers:
            self._full.put(None)
        for writer in self._writers:
            writer.join()

    def _hand_over(self) -> None:
        self._full.put((self._buffer, self._used, self._handed))
        self._handed += self._used
        self._buffer = self._next_buffer()
        self._view = memoryview(self._buffer)
        self._used = 0
        self._check()

    def _next_buffer(self) -> mmap.mmap:
        """One that is written, else a new one, and when there are enough the next one written."""
        if self._buffers < _BUFFERS:
            try:
                return self._free.get_nowait()
            except queue.Empty:
                self._buffers += 1
                return mmap.mmap(-1, BUFFER_BYTES)
        return self._free.get()

    def _check(self) -> None:
        if isinstance(self._error, OSError):
            raise disk_error(self._error, self.path) from self._error
        if self._error is not None:
            raise self._error
        if self._stop.is_set():
            raise Unavailable("the conversion was stopped")

    def _write_all(self) -> None:
        while (item := self._full.get()) is not None:
            buffer, used, offset = item
            if self._error is None:
                try:
                    with memoryview(buffer) as view:
                        self._digests[offset] = b"".join(
                            digest_block(view[start : min(start + BLOCK_BYTES, used)])
                            for start in range(0, used, BLOCK_BYTES)
                        )
                        self._keep_reserve()
                        write_fully(self._descriptor, view[:used], offset, self._pwrite)
                except BaseException as error:
                    self._error = error
            self._free.put(buffer)

    def _keep_reserve(self) -> None:
        disk = os.fstatvfs(self._descriptor)
        reserve = self._reserve_bytes
        if reserve is None:
            reserve = min(_RESERVE_BYTES, disk.f_blocks * disk.f_frsize // _RESERVE_SHARE)
        if disk.f_bavail * disk.f_frsize < reserve:
            raise OSError(errno.ENOSPC, f"{reserve} bytes are kept free")


def append_copies(path: Path, digests: bytes, copies: list[tuple[Path, int, int, int]]) -> bytes:
    """Copy ranges (source file, source, destination, length) behind the end of a finished data file
    and return its new block digests."""
    start_block = path.stat().st_size // BLOCK_BYTES
    with path.open("r+b") as file:
        for source_path, source, destination, length in copies:
            with source_path.open("rb") as source_file:
                source_file.seek(source)
                file.seek(destination)
                left = length
                while left:
                    part = source_file.read(min(left, 1 << 20))
                    if not part:
                        raise Unavailable(f"{source_path} is shorter than its metadata says")
                    file.write(part)
                    left -= len(part)
        file.flush()
        renewed = bytearray(digests[: start_block * DIGEST_BYTES])
        file.seek(start_block * BLOCK_BYTES)
        while block := file.read(BLOCK_BYTES):
            renewed += digest_block(memoryview(block))
    return bytes(renewed)


def write_fully(
    descriptor: int,
    view: memoryview,
    offset: int,
    pwrite: Pwrite = os.pwrite,
) -> None:
    while view:
        written = pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


def disk_error(error: OSError, path: Path) -> Exception:
    """DiskFull for the errors that mean it, else the error itself."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return error
    try:
        status = os.statvfs(path.parent)
        free = f", {status.f_bavail * status.f_frsize} bytes are free"
    except OSError:
        free = ""
    return DiskFull(f"{path.parent}: no room for more image data ({error.strerror}){free}")


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT, 0o644)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise disk_error(error, path) from error
        path.unlink(missing_ok=True)  # some file systems create the file before they refuse
        return os.open(path, flags, 0o644)
