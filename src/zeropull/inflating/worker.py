"""`python -m zeropull.inflating.worker`: the other end of `zeropull.inflating.process`.

Its arguments are the descriptors of the shared memory and of four pipes, and the stream's first
bytes. It ends with the stream, or as soon as its parent has gone.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys

from zeropull.inflating.readers import Source, damage, open_reader
from zeropull.inflating.slots import (
    END,
    FAILED,
    MEMORY_BYTES,
    MESSAGE_BYTES,
    input_slot,
    output_slot,
    read_token,
    write_token,
)

_NICE = -5  # ahead of what waits for it


class _ParentGone(Exception):
    pass


class _Slots(Source):
    """The compressed bytes that the parent puts into slots."""

    def __init__(self, memory: memoryview, filled: int, emptied: int) -> None:
        self._memory = memory
        self._filled = filled
        self._emptied = emptied
        self._slot = END
        self._view = memory[:0]
        self._ended = False

    def drain(self) -> None:
        """What follows the stream's end is the parent's to judge."""
        while self.take(1 << 30):
            pass

    def take(self, size: int) -> memoryview:
        if not self._view and not self._ended:
            if self._slot != END:
                with contextlib.suppress(BrokenPipeError):  # the parent has put everything
                    write_token(self._emptied, self._slot, 0)
            token = read_token(self._filled)
            if token is None:
                raise _ParentGone
            self._slot, count = token
            if self._slot == END:
                self._ended = True
            else:
                self._view = self._memory[input_slot(self._slot)][:count]
        part, self._view = self._view[:size], self._view[size:]
        return part


def main() -> int:
    descriptors, head = [int(word) for word in sys.argv[1:6]], bytes.fromhex(sys.argv[6])
    shared, filled, emptied, inflated, used = descriptors
    memory = memoryview(mmap.mmap(shared, MEMORY_BYTES))
    with contextlib.suppress(OSError):  # not root
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    source = _Slots(memory, filled, emptied)
    try:
        reader = open_reader(head, source)
        while (token := read_token(used)) is not None:
            count = reader.readinto(memory[output_slot(token[0])])
            if not count:
                source.drain()
                write_token(inflated, END, 0)
                return 0
            write_token(inflated, token[0], count)
    except (_ParentGone, BrokenPipeError):
        pass
    except Exception as error:
        damaged = damage(error)
        if damaged is None:
            raise
        message = str(damaged).encode()[:MESSAGE_BYTES] or b"damaged"
        with contextlib.suppress(BrokenPipeError):
            write_token(inflated, FAILED, len(message))
            os.write(inflated, message)
            source.drain()
    return 0


if __name__ == "__main__":
    sys.exit(main())
