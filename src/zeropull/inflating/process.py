"""A process that inflates one stream.

A gzip stream is one thread's work from its first byte to its last, and a large layer or model waits
for nothing else. In a thread of this process it would also wait for the interpreter lock, which
downloading, hashing and unpacking ask for all the time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from zeropull.childprocess import ChildProcess, OtherProcessGone
from zeropull.errors import Unavailable
from zeropull.inflating.readers import HEAD_BYTES, DamagedStream

WORTH_IT_BYTES = 64 << 20
"""A smaller stream is inflated sooner than a process starts."""


class InflatingProcess:
    """One thread calls `put` and `end`, another one iterates `parts`; `close`, once, at the end.

    Raises:
        Unavailable: no process can be started.
    """

    def __init__(self, head: bytes) -> None:
        """`head`: the stream's first bytes, which say what it is. They are `put`, too."""
        self._child = ChildProcess(
            "zeropull.inflating.worker", [head[:HEAD_BYTES].hex()], work="inflating"
        )

    @property
    def pid(self) -> int:
        return self._child.pid

    def kill(self) -> None:
        """End it now: threads that wait in `put` or `parts` get Unavailable. From any thread."""
        self._child.kill()

    def close(self) -> None:
        """End it, once no thread is in `put` or `parts` any more."""
        self._child.close()

    def put(self, part: memoryview | bytes) -> None:
        """Hand over compressed bytes; waits for room. `part` may be reused afterwards.

        Raises:
            Unavailable: the process has ended.
        """
        try:
            self._child.input.write(part)
        except OtherProcessGone:
            raise self._child.gone() from None

    def end(self) -> None:
        """Everything has been put. If the process has ended, `parts` tells."""
        with contextlib.suppress(OtherProcessGone):
            self._child.input.end()

    def parts(self) -> Iterator[memoryview]:
        """The plain bytes; each view stands until the next one is asked for.

        Raises:
            DamagedStream: the stream is not what its format says, or ends too early.
            Unavailable: the process has ended.
        """
        try:
            for part in self._child.output:
                if self._child.is_killed:  # what it had inflated before is not asked for any more
                    raise self._child.gone()
                yield part
        except OtherProcessGone:
            raise self._failure() from None

    def _failure(self) -> DamagedStream | Unavailable:
        try:
            return DamagedStream(self._child.messages.receive().decode(errors="replace"))
        except OtherProcessGone:
            return self._child.gone()
