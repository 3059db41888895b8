"""A tar stream's buffers as blocks and counted bytes.

As Go's archive/tar reads them: the stream may end instead of a header and inside of padding, and
nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from zeropull.erofs.tar_headers import BLOCK
from zeropull.errors import UnreadableImage


class TarBytes:
    """Reads forwards only. Buffers are done with once the next one is asked for.

    Every method raises UnreadableImage where the stream ends too early.
    """

    def __init__(self, stream: Iterator[memoryview]) -> None:
        self._stream = stream
        self._view = memoryview(b"")
        self._position = 0

    def block(self) -> bytes | None:
        """The next 512 bytes; None at the end of the stream."""
        start = self._position
        if start + BLOCK <= len(self._view):
            self._position = start + BLOCK
            return bytes(self._view[start : start + BLOCK])
        if start == len(self._view) and not self._more():
            return None
        return self.take(BLOCK)

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        taken = bytearray()
        while len(taken) < count:
            if self._position == len(self._view) and not self._more():
                raise _truncated()
            end = min(len(self._view), self._position + count - len(taken))
            taken += self._view[self._position : end]
            self._position = end
        return bytes(taken)

    def skip(self, count: int) -> None:
        """Pass over `count` bytes of data."""
        if self._pass_over(count):
            raise _truncated()

    def skip_padding(self, size: int) -> None:
        """Pass over what fills the last block of `size` bytes. Some writers leave it out at the
        very end."""
        self._pass_over(-size % BLOCK)

    def copy(self, count: int, write: Callable[[memoryview], None]) -> None:
        """Hand the next `count` bytes to `write`, in pieces."""
        while count:
            start = self._position
            if start == len(self._view):
                if not self._more():
                    raise _truncated()
                start = 0
            part = min(count, len(self._view) - start)
            write(self._view[start : start + part])
            self._position = start + part
            count -= part

    def _pass_over(self, count: int) -> int:
        """Returns how many bytes of `count` the stream does not have."""
        while count:
            if self._position == len(self._view) and not self._more():
                break
            part = min(count, len(self._view) - self._position)
            self._position += part
            count -= part
        return count

    def _more(self) -> bool:
        for view in self._stream:
            if len(view):
                self._view, self._position = view, 0
                return True
        self._view, self._position = memoryview(b""), 0
        return False


def _truncated() -> UnreadableImage:
    return UnreadableImage("the tar stream is truncated")
