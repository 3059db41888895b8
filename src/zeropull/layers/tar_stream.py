"""Compressed blob to tar stream, digests of both taken on the way, in bounded memory."""

from __future__ import annotations

import hashlib
import itertools
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from zeropull.errors import ImageError, IntegrityError, Unavailable, UnreadableImage
from zeropull.inflating.readers import (
    HEAD_BYTES,
    DamagedStream,
    Source,
    damage,
    open_reader,
)
from zeropull.linux.processes import ahead_of_others

BUFFER_BYTES = 1 << 20
_BUFFERS = 12


class HashedBlob:
    """A blob's buffers, hashed and counted as they come.

    A thread of its own hashes each while its reader inflates it, until `close`; later ones are
    hashed at once.
    """

    def __init__(self, buffers: Iterator[memoryview | bytes]) -> None:
        self.size = 0
        self._buffers = iter(buffers)
        self._hash = hashlib.sha256()
        self._thread: ThreadPoolExecutor | None = ThreadPoolExecutor(1, "layer-blob-hash")
        self._hashing: Future[None] | None = None

    @property
    def digest(self) -> str:
        self._wait()
        return "sha256:" + self._hash.hexdigest()

    def __iter__(self) -> Iterator[memoryview]:
        """Each view stands until the next one is asked for."""
        while True:
            self._wait()  # the buffer is another one's content as soon as the next is asked for
            part = next(self._buffers, None)
            if part is None:
                return
            self.size += len(part)
            if self._thread is None:
                self._hash.update(part)
            else:
                self._hashing = self._thread.submit(self._hash.update, part)
            yield memoryview(part)

    def drain(self) -> None:
        for _ in self:
            pass

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def _wait(self) -> None:
        if self._hashing is not None:
            self._hashing.result()


class _BlobReader(Source):
    """The blob's buffers, one after the other."""

    def __init__(self, parts: Iterator[memoryview]) -> None:
        self._parts = parts
        self._view = memoryview(b"")

    def take(self, size: int) -> memoryview:
        while not self._view and (more := next(self._parts, None)) is not None:
            self._view = more
        part, self._view = self._view[:size], self._view[size:]
        return part


class TarStream:
    """Iterate once over reused buffers of tar bytes; afterwards `blob_digest`, `diff_id` stand.

    A thread inflates ahead, into at most twelve buffers of 1 MiB. Use as a context manager.
    """

    def __init__(
        self,
        blob: Iterator[memoryview | bytes],
        stop: threading.Event,
        limit_bytes: int,
    ) -> None:
        """`limit_bytes`: of the tar; a longer one is refused."""
        self._blob = HashedBlob(blob)
        self._limit = limit_bytes
        self._stop = stop
        self._ended = False
        self._hash = hashlib.sha256()
        self._free: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[tuple[memoryview, int] | BaseException | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._inflate, name="layer-inflate", daemon=True)

    def __enter__(self) -> TarStream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._free.put(None)
        self._thread.join()
        self._blob.close()

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
                    f"the layer inflates to more than {self._limit:,} bytes: raise the setting "
                    "fleet.layer_bytes"
                )
            self._hash.update(buffer[:count])
            yield buffer[:count]
            self._free.put(buffer)

    def _inflate(self) -> None:
        """What the thread does, which is the longest part of a large layer: it goes first."""
        ahead_of_others()
        try:
            self._inflate_all(iter(self._blob))
            self._full.put(None)
        except BaseException as error:
            damaged = damage(error) if isinstance(error, Exception) else None
            self._full.put(error if damaged is None else _damaged(damaged))

    def _inflate_all(self, parts: Iterator[memoryview]) -> None:
        head, parts = _look_at_head(parts)
        for _ in range(_BUFFERS):
            self._free.put(memoryview(bytearray(BUFFER_BYTES)))
        reader = open_reader(head, _BlobReader(parts))
        while (buffer := self._free.get()) is not None and not self._ended:
            self._check_stop()
            count = reader.readinto(buffer)
            if not count:
                break
            self._full.put((buffer, count))
        if not self._ended:
            for _ in parts:  # what follows the compressed stream belongs to the blob's digest
                pass

    def _check_stop(self) -> None:
        if self._stop.is_set() or self._ended:
            raise Unavailable("the conversion was stopped")


def _look_at_head(parts: Iterator[memoryview]) -> tuple[bytes, Iterator[memoryview]]:
    """The blob's first bytes, and the whole blob: its first buffers may be shorter than they."""
    first = next(parts, memoryview(b""))
    while len(first) < HEAD_BYTES:
        kept = bytes(first)  # before the next one is asked for
        if (more := next(parts, None)) is None:
            break
        first = memoryview(kept + bytes(more))
    return bytes(first[:HEAD_BYTES]), itertools.chain([first], parts)


def _damaged(error: DamagedStream) -> IntegrityError | UnreadableImage:
    failure = (
        UnreadableImage(f"the layer's compressed stream: {error}")
        if error.needs_memory
        else IntegrityError(f"the layer's compressed stream is damaged: {error}")
    )
    failure.__cause__ = error
    return failure
