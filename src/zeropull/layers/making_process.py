"""A process that makes layers, so that several are made at once.

Entries of small files are Python's work, for which an interpreter has one lock; and the node agent,
whose pull this is, answers others meanwhile. `zeropull.layers.making_messages` has what the two
processes say to each other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from zeropull.childprocess import ChildProcess, OtherProcessGone
from zeropull.layers.making import LayerJob, MadeLayer
from zeropull.layers.making_messages import (
    Failed,
    Finish,
    Lower,
    Made,
    Make,
    Order,
    decode_answer,
    encode_message,
)


class LayerProcess:
    """A `zeropull.layers.making.LayerMaker` elsewhere; `close`, once, at the end.

    Raises:
        Unavailable: no process can be started; from its methods also when it has ended.
    """

    def __init__(self) -> None:
        self._child = ChildProcess("zeropull.layers.making_worker", work="making layers")
        self._lowers_told = 0

    def kill(self) -> None:
        """End it now: threads that wait for it get Unavailable. From any thread."""
        self._child.kill()

    def close(self) -> None:
        """End it, once no other thread is in `make` or `finish` any more."""
        self._child.close()

    def make(self, job: LayerJob, blob: Iterator[memoryview]) -> MadeLayer:
        self._send(Make(job))
        for part in blob:
            try:
                self._child.input.write(part)
            except OtherProcessGone:
                return self._receive()  # it has said why, most likely
        with contextlib.suppress(OtherProcessGone):
            self._child.input.end()
        return self._receive()

    def finish(self, directory: str, lowers: Sequence[str]) -> MadeLayer:
        # Layers are finished in the image's order: what was below one is below the next one, too.
        for lower in lowers[::-1][self._lowers_told :]:
            self._send(Lower(lower))
        self._lowers_told = len(lowers)
        self._send(Finish(directory))
        return self._receive()

    def _send(self, order: Order) -> None:
        with contextlib.suppress(OtherProcessGone):  # its answer, or its end, is received later
            self._child.messages.send(encode_message(order))

    def _receive(self) -> MadeLayer:
        try:
            answer = decode_answer(self._child.messages.receive())
        except OtherProcessGone:
            raise self._child.gone() from None
        match answer:
            case Made(layer):
                return layer
            case Failed():
                raise answer.error()
