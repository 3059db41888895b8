"""`python -m zeropull.layers.making_worker`: the other end of `zeropull.layers.making_process`.

Its arguments are the descriptors of the socket and of the shared memory. It ends with its parent,
or when a layer has failed.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import socket
import sys
import threading
from collections.abc import Iterator

from zeropull.errors import ZeropullError
from zeropull.inflating.slots import input_slot
from zeropull.layers.making import LayerMaker
from zeropull.layers.process_messages import (
    MEMORY_BYTES,
    BlobEnd,
    BlobPart,
    Failed,
    Finish,
    Lower,
    Made,
    Make,
    Order,
    SlotFree,
    receive_order,
    send,
)
from zeropull.layers.thread_switching import short_switch_interval


class _ParentGone(Exception):
    pass


def main() -> int:
    connection = socket.socket(fileno=int(sys.argv[1]))
    memory = memoryview(mmap.mmap(int(sys.argv[2]), MEMORY_BYTES))
    gc.disable()  # trees have no cycles, and collecting would walk them again and again
    maker = LayerMaker(threading.Event())
    lowers: list[str] = []
    try:
        with short_switch_interval():
            while (order := receive_order(connection)) is not None:
                _carry_out(order, maker, lowers, connection, memory)
    except (_ParentGone, ConnectionError):
        pass
    except (ZeropullError, OSError) as error:
        with contextlib.suppress(ConnectionError):
            send(connection, Failed.of(error))
    return 0


def _carry_out(
    order: Order,
    maker: LayerMaker,
    lowers: list[str],
    connection: socket.socket,
    memory: memoryview,
) -> None:
    match order:
        case Make(job):
            send(connection, Made(maker.make(job, _blob(connection, memory))))
        case Lower(directory):
            lowers.append(directory)
        case Finish(directory):
            send(connection, Made(maker.finish(directory, lowers[::-1])))
        case _:
            raise AssertionError(f"{order} outside a layer")


def _blob(connection: socket.socket, memory: memoryview) -> Iterator[memoryview]:
    while True:
        match receive_order(connection):
            case None:
                raise _ParentGone
            case BlobPart(slot, size):
                yield memory[input_slot(slot)][:size]
                send(connection, SlotFree(slot))
            case BlobEnd():
                return
            case order:
                raise AssertionError(f"{order} inside a layer")


if __name__ == "__main__":
    sys.exit(main())
