"""`python -m zeropull.inflating.worker`: the other end of `zeropull.inflating.process`.

Its argument is the stream's first bytes. It ends with the stream, or as soon as its parent has
gone. What is wrong with the stream is its only message.
"""

from __future__ import annotations

import contextlib
import sys

from zeropull.childprocess import OtherProcessGone, ParentProcess, SlotReader
from zeropull.inflating.readers import Source, damage, open_reader
from zeropull.linux.processes import ahead_of_others

_MESSAGE_BYTES = 1000


class _CompressedInput(Source):
    """The compressed bytes that the parent writes."""

    def __init__(self, slots: SlotReader) -> None:
        self._slots = slots
        self._view = memoryview(b"")
        self._ended = False

    def drain(self) -> None:
        """The parent judges what follows the stream's end: it writes all of it."""
        while self.take(1 << 30):
            pass

    def take(self, size: int) -> memoryview:
        if not self._view and not self._ended:
            self._view = self._slots.read()
            self._ended = not self._view
        part, self._view = self._view[:size], self._view[size:]
        return part


def main() -> int:
    parent = ParentProcess(sys.argv)
    ahead_of_others()
    source = _CompressedInput(parent.input)
    try:
        reader = open_reader(bytes.fromhex(parent.arguments[0]), source)
        while count := reader.readinto(parent.output.room()):
            parent.output.commit(count)
        source.drain()
        parent.output.end()
    except OtherProcessGone:
        pass
    except Exception as error:
        damaged = damage(error)
        if damaged is None:
            raise
        with contextlib.suppress(OtherProcessGone):
            parent.messages.send(str(damaged).encode()[:_MESSAGE_BYTES] or b"damaged")
            parent.output.close()
            source.drain()
    return 0


if __name__ == "__main__":
    sys.exit(main())
