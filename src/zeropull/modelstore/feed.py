"""A bounded pipe from the event loop to the thread that extracts."""

from __future__ import annotations

import io
import threading
from collections import deque

from zeropull.errors import Unavailable

_MAX_WAITING_BYTES = 32 << 20


class Feed(io.RawIOBase):
    """Written with `put` by one thread, read as a file by another."""

    def __init__(self) -> None:
        super().__init__()
        self._condition = threading.Condition()
        self._chunks: deque[memoryview] = deque()
        self._waiting_bytes = 0
        self._ended = False
        self._aborted = False
        self._abandoned = False

    def put(self, chunk: bytes) -> bool:
        """Wait for room and add `chunk`; False when the reader has gone."""
        with self._condition:
            self._condition.wait_for(
                lambda: self._waiting_bytes < _MAX_WAITING_BYTES or self._is_over()
            )
            if self._is_over():
                return False
            self._chunks.append(memoryview(chunk))
            self._waiting_bytes += len(chunk)
            self._condition.notify_all()
            return True

    def end(self) -> None:
        """Everything has been put."""
        with self._condition:
            self._ended = True
            self._condition.notify_all()

    def abort(self) -> None:
        """The rest will never come: the reader gets an error instead of an end."""
        with self._condition:
            self._aborted = True
            self._condition.notify_all()

    def abandon(self) -> None:
        """The reader has gone: nobody waits for room any more."""
        with self._condition:
            self._abandoned = True
            self._chunks.clear()
            self._condition.notify_all()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        with self._condition:
            self._condition.wait_for(lambda: self._chunks or self._ended or self._aborted)
            if self._aborted:
                raise Unavailable("the download was broken off")
            if not self._chunks:
                return 0
            chunk = self._chunks[0]
            count = min(len(buffer), len(chunk))
            buffer[:count] = chunk[:count]
            if count == len(chunk):
                self._chunks.popleft()
            else:
                self._chunks[0] = chunk[count:]
            self._waiting_bytes -= count
            self._condition.notify_all()
            return count

    def _is_over(self) -> bool:
        return self._aborted or self._abandoned
