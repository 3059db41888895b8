"""A process that makes layers, so that several are made at once.

Entries of small files are Python's work, for which an interpreter has one lock; and the node agent,
whose pull this is, answers others meanwhile. The blob's bytes go there in slots of shared memory,
everything else as messages over a socket pair: what each side says is in
`zeropull.layers.process_messages`. When either process dies, the other one reads the socket's end.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

from zeropull.errors import Unavailable
from zeropull.inflating.slots import INPUT_SLOT_BYTES, INPUT_SLOTS, input_slot
from zeropull.layers.making import LayerJob, MadeLayer
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
    receive_answer,
    send,
)

_COMMAND = (sys.executable, "-m", "zeropull.layers.making_worker")


class LayerProcess:
    """A `zeropull.layers.making.LayerMaker` elsewhere; `close`, once, at the end.

    Raises:
        Unavailable: no process can be started; from its methods also when it has died.
    """

    def __init__(self) -> None:
        self._killed = threading.Event()
        self._lowers_told = 0
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory = os.memfd_create("zeropull-layer")
        try:
            os.ftruncate(memory, MEMORY_BYTES)
            self._memory = memoryview(mmap.mmap(memory, MEMORY_BYTES))
            descriptors = (theirs.fileno(), memory)
            self._process = subprocess.Popen(
                [*_COMMAND, *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors,
                cwd="/",
            )
        except OSError as error:
            self._socket.close()
            raise Unavailable(f"no process that makes layers can be started: {error}") from error
        finally:
            theirs.close()
            os.close(memory)

    def kill(self) -> None:
        """End it now: whoever waits for it gets Unavailable. From any thread."""
        self._killed.set()
        self._process.kill()

    def close(self) -> None:
        """End it, once no other thread is in `make` or `finish` any more."""
        self.kill()
        self._process.wait()
        self._socket.close()

    def make(self, job: LayerJob, blob: Iterator[memoryview]) -> MadeLayer:
        self._send(Make(job))
        free = list(range(INPUT_SLOTS))
        for part in blob:
            while part:
                piece, part = part[:INPUT_SLOT_BYTES], part[INPUT_SLOT_BYTES:]
                slot = free.pop() if free else self._receive_slot()
                self._memory[input_slot(slot)][: len(piece)] = piece
                self._send(BlobPart(slot, len(piece)))
        self._send(BlobEnd())
        return self._receive_made()

    def finish(self, directory: str, lowers: Sequence[str]) -> MadeLayer:
        # Layers are finished in the image's order: what was below one is below the next one, too.
        for lower in lowers[::-1][self._lowers_told :]:
            self._send(Lower(lower))
        self._lowers_told = len(lowers)
        self._send(Finish(directory))
        return self._receive_made()

    def _receive_slot(self) -> int:
        match self._receive():
            case SlotFree(slot):
                return slot
            case other:
                raise AssertionError(f"{other} before the blob's end")

    def _receive_made(self) -> MadeLayer:
        while True:
            match self._receive():
                case Made(layer):
                    return layer
                case SlotFree():
                    pass

    def _receive(self) -> Made | SlotFree:
        with contextlib.suppress(ConnectionError):
            match receive_answer(self._socket):
                case Failed() as failure:
                    raise failure.error()
                case Made() | SlotFree() as answer:
                    return answer
        if self._killed.is_set():
            raise Unavailable("the conversion was stopped")
        status = self._process.wait()
        raise Unavailable(f"the process that makes layers ended with status {status}")

    def _send(self, message: Order) -> None:
        try:
            send(self._socket, message)
        except ConnectionError:
            while True:  # it may have said why before it ended
                self._receive()
