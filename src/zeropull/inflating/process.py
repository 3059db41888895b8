"""A process that inflates one stream, through memory that it shares with this one.

A gzip stream is one thread's work from its first byte to its last, and a large layer or model waits
for nothing else. In a thread of this process it would also wait for the interpreter lock, which
downloading, hashing and unpacking ask for all the time.

Compressed bytes go into slots of shared memory, plain ones come back in others; who fills a slot
and who is done with one tells the other by a pipe. When either process dies, the other reads the
end of a pipe.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

from zeropull.errors import Unavailable
from zeropull.inflating.readers import HEAD_BYTES, DamagedStream
from zeropull.inflating.slots import (
    END,
    FAILED,
    INPUT_SLOT_BYTES,
    INPUT_SLOTS,
    MEMORY_BYTES,
    OUTPUT_SLOTS,
    input_slot,
    output_slot,
    read_token,
    write_token,
)

WORTH_IT_BYTES = 64 << 20
"""A smaller stream is inflated sooner than a process starts."""

_COMMAND = (sys.executable, "-m", "zeropull.inflating.worker")


class InflatingProcess:
    """One thread calls `put` and `end`, another one iterates `parts`; `close`, once, at the end."""

    def __init__(self, head: bytes) -> None:
        """`head`: the stream's first bytes, which say what it is. They are `put`, too."""
        self._stack = contextlib.ExitStack()
        self._ended = threading.Event()
        with contextlib.ExitStack() as theirs:
            memory = os.memfd_create("zeropull-inflating")
            theirs.callback(os.close, memory)
            os.ftruncate(memory, MEMORY_BYTES)
            self._memory = memoryview(mmap.mmap(memory, MEMORY_BYTES))
            filled_theirs, self._filled = self._pipe(theirs)
            self._emptied, emptied_theirs = self._pipe(theirs, reads=True)
            self._inflated, inflated_theirs = self._pipe(theirs, reads=True)
            used_theirs, self._used = self._pipe(theirs)
            descriptors = (memory, filled_theirs, emptied_theirs, inflated_theirs, used_theirs)
            command = [*_COMMAND, *map(str, descriptors), head[:HEAD_BYTES].hex()]
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, pass_fds=descriptors, cwd="/"
                )
            except OSError:
                self._stack.close()
                raise
        self._free_inputs = list(range(INPUT_SLOTS))

    def kill(self) -> None:
        """End it now: whoever waits in `put` or `parts` gets Unavailable. From any thread."""
        self._ended.set()
        self._process.kill()

    def close(self) -> None:
        """End it, once nobody is in `put` or `parts` any more."""
        self.kill()
        self._process.wait()
        self._stack.close()

    def put(self, part: memoryview | bytes) -> None:
        """Hand over compressed bytes; waits for room. `part` may be reused afterwards.

        Raises:
            Unavailable: the process has ended; `parts` says why.
        """
        view = memoryview(part)
        while view:
            piece, view = view[:INPUT_SLOT_BYTES], view[INPUT_SLOT_BYTES:]
            slot = self._free_inputs.pop() if self._free_inputs else self._wait_for_input()
            self._memory[input_slot(slot)][: len(piece)] = piece
            self._send(self._filled, slot, len(piece))

    def end(self) -> None:
        """Everything has been put. Whoever iterates `parts` learns of a process that has ended."""
        with contextlib.suppress(Unavailable):
            self._send(self._filled, END, 0)

    def parts(self) -> Iterator[memoryview]:
        """The plain bytes; each view stands until the next one is asked for.

        Raises:
            DamagedStream: the stream is not what its format says, or ends too early.
            Unavailable: the process was ended.
        """
        for slot in range(OUTPUT_SLOTS):
            self._send(self._used, slot, 0)
        while True:
            token = read_token(self._inflated)
            if token is None:
                raise self._gone()
            slot, count = token
            if slot == END:
                return
            if slot == FAILED:
                raise DamagedStream(os.read(self._inflated, count).decode(errors="replace"))
            yield self._memory[output_slot(slot)][:count]
            self._send(self._used, slot, 0)

    def _pipe(self, theirs: contextlib.ExitStack, *, reads: bool = False) -> tuple[int, int]:
        """(reading end, writing end); ours, which reads or writes, is closed at the end."""
        ends = os.pipe()
        self._stack.callback(os.close, ends[0] if reads else ends[1])
        theirs.callback(os.close, ends[1] if reads else ends[0])
        return ends

    def _wait_for_input(self) -> int:
        token = read_token(self._emptied)
        if token is None:
            raise self._gone()
        return token[0]

    def _send(self, pipe: int, slot: int, count: int) -> None:
        try:
            write_token(pipe, slot, count)
        except BrokenPipeError:
            # The one who iterates learns what it has said before; the one who puts ends here.
            if pipe == self._filled:
                raise self._gone() from None

    def _gone(self) -> Unavailable:
        if self._ended.is_set():
            return Unavailable("inflating was stopped")
        status = self._process.wait()
        return Unavailable(f"the process that inflates ended with status {status}")
