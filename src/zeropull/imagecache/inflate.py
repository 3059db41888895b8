"""Compressed blob to tar stream, digests of both taken on the way, in bounded memory."""

from __future__ import annotations

import gzip
import hashlib
import queue
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Protocol, cast

import zstandard
from isal import isal_zlib
from isal.igzip_lib import IsalError

from zeropull.errors import ImageError, IntegrityError, Unavailable
from zeropull.imagecache.threads import prefer_this_thread

BUFFER_BYTES = 1 << 20
_BUFFERS = 12
_INPUT_BYTES = 512 << 10
_ZSTD_WINDOW_MAX = 128 << 20  # what zstd --long=27 asks for; larger windows are refused
_HEAD_BYTES = 4
# A blob may inflate to this much whatever its size, and beyond it by this factor.
BOMB_FREE_BYTES = 1 << 30
BOMB_FACTOR = 200


class _Readable(Protocol):
    def readinto(self, buffer: memoryview) -> int: ...


class BlobReader:
    """The raw file that decompressors read: hashes and counts what the blob's buffers bring.

    With `hash_in` a buffer is hashed there while the caller inflates it, and is done with before
    the next one is asked for: inflating alone is what a large layer waits for.
    """

    def __init__(
        self, buffers: Iterator[memoryview | bytes], hash_in: Executor | None = None
    ) -> None:
        self.size = 0
        self._buffers = buffers
        self._view = memoryview(b"")
        self._hash = hashlib.sha256()
        self._hash_in = hash_in
        self._hashing: Future[None] | None = None

    @property
    def digest(self) -> str:
        self._hashed()
        return "sha256:" + self._hash.hexdigest()

    def hash_here(self) -> None:
        """From now on nothing is handed to `hash_in`, and no buffer is in use there."""
        self._hash_in = None
        self._hashed()

    def readinto(self, buffer: memoryview) -> int:
        if not self._view and not self._more():
            return 0
        target = memoryview(buffer)
        count = min(len(target), len(self._view))
        target[:count] = self._view[:count]
        self._view = self._view[count:]
        return count

    def read(self, size: int) -> bytes:
        if not self._view and not self._more():
            return b""
        part = bytes(self._view[:size])
        self._view = self._view[size:]
        return part

    def peek(self) -> bytes:
        """The first bytes, left in place; empty for an empty blob."""
        while len(self._view) < _HEAD_BYTES:
            kept = bytes(self._view)
            if not self._more():
                self._view = memoryview(kept)
                return kept
            self._view = memoryview(kept + bytes(self._view)) if kept else self._view
        return bytes(self._view[:_HEAD_BYTES])

    def drain(self) -> None:
        while self._more():
            pass

    def _more(self) -> bool:
        self._hashed()
        for part in self._buffers:
            if len(part):
                if self._hash_in is None:
                    self._hash.update(part)
                else:
                    self._hashing = self._hash_in.submit(self._hash.update, part)
                self.size += len(part)
                self._view = memoryview(part)
                return True
        self._view = memoryview(b"")
        return False

    def _hashed(self) -> None:
        hashing, self._hashing = self._hashing, None
        if hashing is not None:
            hashing.result()


class TarStream:
    """Iterate once over reused buffers of tar bytes; afterwards `blob_digest`, `diff_id` stand.

    A thread inflates ahead, into at most twelve buffers of 1 MiB. Use as a context manager.
    """

    def __init__(
        self, blob: Iterator[memoryview | bytes], blob_size: int, stop: threading.Event
    ) -> None:
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="layer-blob-hash")
        self._blob = BlobReader(blob, self._hasher)
        self._limit = BOMB_FREE_BYTES + BOMB_FACTOR * blob_size
        self._stop = stop
        self._ended = False
        self._hash = hashlib.sha256()
        self._free: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[tuple[memoryview, int] | BaseException | None] = (
            queue.SimpleQueue()
        )
        for _ in range(_BUFFERS):
            self._free.put(memoryview(bytearray(BUFFER_BYTES)))
        self._thread = threading.Thread(target=self._inflate_all, name="layer-inflate", daemon=True)

    def __enter__(self) -> TarStream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._free.put(None)
        self._thread.join()
        self._blob.hash_here()
        self._hasher.shutdown()

    @property
    def blob_digest(self) -> str:
        return self._blob.digest

    @property
    def blob_bytes(self) -> int:
        return self._blob.size

    def drain_blob(self) -> str:
        """After the end: read what is left of the blob without inflating it; returns its digest."""
        self._blob.drain()
        return self._blob.digest

    @property
    def diff_id(self) -> str:
        return "sha256:" + self._hash.hexdigest()

    def __iter__(self) -> Iterator[memoryview]:
        total = 0
        while (item := self._full.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            buffer, count = item
            total += count
            if total > self._limit:
                raise ImageError(
                    f"the layer inflates to more than {self._limit} bytes "
                    f"({BOMB_FACTOR} times its compressed size and 1 GiB): refused"
                )
            view = buffer[:count]
            self._hash.update(view)
            yield view
            self._free.put(buffer)

    def _inflate_all(self) -> None:
        prefer_this_thread()
        try:
            reader = open_compressed(self._blob)
            while (buffer := self._free.get()) is not None and not self._ended:
                if self._stop.is_set():
                    raise Unavailable("the conversion was stopped")
                count = reader.readinto(buffer)
                if not count:
                    break
                self._full.put((buffer, count))
            if not self._ended:
                self._blob.drain()
            self._full.put(None)
        except _DAMAGE as error:
            failure = IntegrityError(f"the layer's compressed stream is damaged: {error}")
            failure.__cause__ = error
            self._full.put(failure)
        except BaseException as error:
            self._full.put(error)


def open_compressed(blob: BlobReader) -> _Readable:
    """A reader of the uncompressed bytes; gzip and zstd are recognised by their first bytes, as
    containerd does, whatever the media type says."""
    head = blob.peek()
    source: Any = blob
    if head[:3] == b"\x1f\x8b\x08":
        reader: _Readable = isal_zlib._GzipReader(source, _INPUT_BYTES)
        return reader
    if head == b"\x28\xb5\x2f\xfd" or (head[:1] and head[1:] == b"\x2a\x4d\x18"):
        return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX).stream_reader(
            source, read_size=_INPUT_BYTES, read_across_frames=True
        )
    return blob


_DAMAGE: tuple[type[Exception], ...] = (
    EOFError,
    cast(type[Exception], IsalError),  # its stub takes it for an instance
    zlib.error,
    zstandard.ZstdError,
    gzip.BadGzipFile,
)
