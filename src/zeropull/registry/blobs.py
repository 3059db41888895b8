"""One blob as an ordered stream of bytes, read by several connections at once.

For worker threads and processes: everything here blocks. Nothing is hashed; the consumer does that
while the bytes are warm.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Callable, Generator, Iterator

from zeropull.errors import Unavailable
from zeropull.registry.auth import Authorizer
from zeropull.registry.ranges import RangeReader
from zeropull.registry.source import BlobSource as BlobSource

DEFAULT_CONNECTIONS = 4
# Six of them are in memory for each layer in work, of which there may be four on four cores.
DEFAULT_PART_BYTES = (16 << 20) // min(4, max(2, os.cpu_count() or 1))
_MAX_KEPT_BYTES = 96 << 20


@contextlib.contextmanager
def open_blob(
    source: BlobSource,
    *,
    connections: int = DEFAULT_CONNECTIONS,
    part_bytes: int = DEFAULT_PART_BYTES,
    stop: threading.Event | None = None,
    on_bytes: Callable[[int], None] | None = None,
    on_use: Callable[[int, int], None] | None = None,
) -> Iterator[Iterator[memoryview]]:
    """Read the blob in order. Each view is valid until the next one is asked for.

    At most `connections + 2` parts are in memory. `stop`, once set, ends the stream with
    `Unavailable`. `on_bytes` is called from the reading threads with every count received, also of
    bytes that had to be read twice; `on_use` with changes of the numbers of connections that are
    open, and of those that read: the others wait until the consumer has room.

    Raises (while iterating):
        Unavailable: the registry cannot be reached, or keeps breaking off.
        NotFound: it does not have the blob (any more).
        AccessDenied: credentials are missing or do not work.
        IntegrityError: the blob has another length than its descriptor says.
    """
    stream = _PartStream(source, connections, part_bytes, stop, on_bytes, on_use)
    parts = stream.parts()
    try:
        yield parts
    finally:
        parts.close()
        stream.close()


class _PartStream:
    """Workers fill numbered parts, the consumer takes them in order.

    A worker takes a place in the window before it takes a number, so the lowest outstanding part
    always has a buffer and the window cannot fill up with later ones.
    """

    def __init__(
        self,
        source: BlobSource,
        connections: int,
        part_bytes: int,
        stop: threading.Event | None,
        on_bytes: Callable[[int], None] | None,
        on_use: Callable[[int, int], None] | None = None,
    ) -> None:
        self._source = source
        # Small blobs share buffers with large ones: memory that nobody has touched costs nothing.
        self._buffer_bytes = part_bytes
        self._part_bytes = max(1, min(part_bytes, source.size))
        self._count = -(-source.size // self._part_bytes)
        self._connections = max(1, min(connections, self._count))
        self._window = threading.Semaphore(self._connections + 2)
        self._stop = stop
        self._on_bytes = on_bytes
        self._on_use = on_use or (lambda opened, reading: None)
        self._condition = threading.Condition()
        self._ready: dict[int, mmap.mmap] = {}
        self._next = 0
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._workers: list[tuple[threading.Thread, RangeReader]] = []
        self._authorizers = {one.url: _authorizer(one) for one in (source, *source.others)}

    def parts(self) -> Generator[memoryview, None, None]:
        if self._count:
            self._start_worker()
        for number in range(self._count):
            buffer = self._take(number)
            view = memoryview(buffer)[: self._length(number)]
            try:
                yield view
            finally:
                view.release()  # who still reads it gets an error, not other bytes
                _BUFFERS.give_back(buffer)
                self._window.release()

    def close(self) -> None:
        """End the workers and wait for them."""
        with self._condition:
            self._ended.set()
            workers = list(self._workers)
        for _, reader in workers:
            self._window.release()
            reader.close()
        for thread, _ in workers:
            thread.join()
        for buffer in self._ready.values():
            _BUFFERS.give_back(buffer)
        self._ready.clear()

    def _length(self, number: int) -> int:
        return min(self._part_bytes, self._source.size - number * self._part_bytes)

    def _take(self, number: int) -> mmap.mmap:
        with self._condition:
            while number not in self._ready and self._error is None:
                self._condition.wait(0.25)  # `stop` is not ours, so nobody notifies us of it
                if self._stop is not None and self._stop.is_set():
                    raise Unavailable(f"reading {self._source.digest} was stopped")
            if number in self._ready:
                return self._ready.pop(number)
        assert self._error is not None
        raise self._error

    def _start_worker(self) -> None:
        reader = RangeReader(
            self._source,
            lambda one: self._authorizers[one.url],
            pause=self._pause,
            on_open=self._opened,
            on_bytes=self._on_bytes,
        )
        thread = threading.Thread(target=self._work, args=(reader,), daemon=True)
        with self._condition:
            if self._ended.is_set():
                return
            self._workers.append((thread, reader))
            thread.start()

    def _opened(self, has_ranges: bool) -> None:
        # Only the first response decides: a server without ranges sends everything to everyone.
        if has_ranges and len(self._workers) == 1:
            for _ in range(self._connections - 1):
                self._start_worker()

    def _pause(self, seconds: float) -> bool:
        if self._stop is not None and self._stop.is_set():
            return True
        return self._ended.is_set() or (seconds > 0 and self._ended.wait(seconds))

    def _work(self, reader: RangeReader) -> None:
        self._on_use(1, 0)
        try:
            while (number := self._next_number()) is not None:
                buffer = _BUFFERS.take(self._buffer_bytes)
                view = memoryview(buffer)[: self._length(number)]
                self._on_use(0, 1)
                try:
                    reader.fill(view, number * self._part_bytes)
                finally:
                    self._on_use(0, -1)
                with self._condition:
                    self._ready[number] = buffer
                    self._condition.notify()
        except Exception as error:
            # Handed to the consumer, who raises it; a close that we asked for lands here too.
            with self._condition:
                self._error = self._error or error
                self._condition.notify()
        finally:
            self._on_use(-1, 0)
            reader.close()

    def _next_number(self) -> int | None:
        self._window.acquire()
        with self._condition:
            if self._ended.is_set() or self._error is not None or self._next >= self._count:
                return None
            self._next += 1
            return self._next - 1


def _authorizer(source: BlobSource) -> Authorizer:
    authorizer = Authorizer(source.host, lambda: source.access, source.user_agent)
    if source.authorization is not None:
        authorizer.keep(source.repository, source.authorization)
    return authorizer


class _Buffers:
    """Buffers of all streams of this process, kept because first use of memory is dear (page faults
    cost about a second of processor time per 500 MB on a virtual machine)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[mmap.mmap] = []

    def take(self, size: int) -> mmap.mmap:
        with self._lock:
            for index, buffer in enumerate(self._kept):
                if len(buffer) == size:
                    return self._kept.pop(index)
        return mmap.mmap(-1, size)  # a bytearray's pages would all be touched

    def give_back(self, buffer: mmap.mmap) -> None:
        with self._lock:
            self._kept.append(buffer)
            while sum(map(len, self._kept)) > _MAX_KEPT_BYTES:
                self._kept.pop(0)


_BUFFERS = _Buffers()
