"""Inflates a small stream in the thread that iterates, with the methods of `InflatingProcess`."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from zeropull.errors import Unavailable
from zeropull.inflating.readers import Source, damage, open_reader

_BUFFER_BYTES = 1 << 20
_MAX_WAITING_BYTES = 32 << 20


class InflatingInThread(Source):
    """One thread calls `put` and `end`, another one iterates `parts`."""

    def __init__(self, head: bytes) -> None:
        """`head`: the stream's first bytes, which say what it is. They are `put`, too."""
        self._head = head
        self._condition = threading.Condition()
        self._chunks: deque[memoryview] = deque()
        self._waiting_bytes = 0
        self._is_whole = False
        self._is_stopped = False

    def kill(self) -> None:
        """Threads that wait in `put` or `parts` get Unavailable. From any thread."""
        with self._condition:
            self._is_stopped = True
            self._condition.notify_all()

    def close(self) -> None:
        """As `kill`, once no thread is in `put` or `parts` any more."""
        self.kill()
        self._chunks.clear()

    def put(self, part: memoryview | bytes) -> None:
        """Hand over compressed bytes, which stay as they are; waits for room.

        Raises:
            Unavailable: it was stopped.
        """
        with self._condition:
            self._condition.wait_for(
                lambda: self._waiting_bytes < _MAX_WAITING_BYTES or self._is_stopped
            )
            self._check()
            self._chunks.append(memoryview(part))
            self._waiting_bytes += len(part)
            self._condition.notify_all()

    def end(self) -> None:
        """Everything has been put."""
        with self._condition:
            self._is_whole = True
            self._condition.notify_all()

    def parts(self) -> Iterator[memoryview]:
        """The plain bytes; each view stands until the next one is asked for.

        Raises:
            DamagedStream: the stream is not what its format says, or ends too early.
            Unavailable: it was stopped.
        """
        # One buffer again and again: fresh memory for every megabyte costs half as much as
        # inflating it does.
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        reader = open_reader(self._head, self)
        try:
            while count := reader.readinto(buffer):
                yield buffer[:count]
        except Exception as error:
            damaged = damage(error)
            if damaged is None:
                raise
            raise damaged from error

    def take(self, size: int) -> memoryview:
        """For the reader."""
        with self._condition:
            self._condition.wait_for(lambda: self._chunks or self._is_whole or self._is_stopped)
            self._check()
            if not self._chunks:
                return memoryview(b"")
            part, rest = self._chunks[0][:size], self._chunks[0][size:]
            if rest:
                self._chunks[0] = rest
            else:
                self._chunks.popleft()
            self._waiting_bytes -= len(part)
            self._condition.notify_all()
            return part

    def _check(self) -> None:
        if self._is_stopped:
            raise Unavailable("inflating was stopped")
