"""`python -m zeropull.layers.making_worker`: the other end of `zeropull.layers.making_process`.

It ends with its parent, or when a layer has failed.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading

from zeropull.childprocess import OtherProcessGone, ParentProcess
from zeropull.errors import ZeropullError
from zeropull.layers.making import LayerMaker
from zeropull.layers.making_messages import (
    Failed,
    Finish,
    Lower,
    Made,
    Make,
    decode_order,
    encode_message,
)
from zeropull.layers.thread_switching import switch_threads_often


def main() -> int:
    parent = ParentProcess(sys.argv)
    gc.disable()  # trees have no cycles, and collecting would walk them again and again
    switch_threads_often()
    maker = LayerMaker(threading.Event())
    lowers: list[str] = []
    try:
        while True:
            _carry_out_next(parent, maker, lowers)
    except OtherProcessGone:
        pass
    except (ZeropullError, OSError) as error:
        with contextlib.suppress(OtherProcessGone):
            parent.messages.send(encode_message(Failed.of(error)))
    return 0


def _carry_out_next(parent: ParentProcess, maker: LayerMaker, lowers: list[str]) -> None:
    match decode_order(parent.messages.receive()):
        case Make(job):
            made = maker.make(job, iter(parent.input))
        case Lower(directory):
            lowers.append(directory)
            return
        case Finish(directory):
            made = maker.finish(directory, lowers[::-1])
    parent.messages.send(encode_message(Made(made)))


if __name__ == "__main__":
    sys.exit(main())
