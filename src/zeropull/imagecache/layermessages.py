"""What a layer process and its parent say to each other, and the memory that they share.

The parent says `Make`, then `BlobPart` for every piece of the blob that it has put into a slot, and
`BlobEnd`; the process answers `SlotFree` for slots that it has read, and in the end `Made` or
`Failed`, after which it ends. `Finish` is answered by the latter two.
"""

from __future__ import annotations

import socket

import msgspec

from zeropull import errors
from zeropull.imagecache.layermaking import LayerJob, MadeLayer

# Enough for either side to go on while the other one does something else for some 20 ms, and small
# enough for the processor's caches.
SLOTS, SLOT_BYTES = 8, 512 << 10
MEMORY_BYTES = SLOTS * SLOT_BYTES

_MESSAGE_MAX_BYTES = 128 << 10  # the directories of 128 layers below, with room


class Make(msgspec.Struct, tag=True, array_like=True):
    job: LayerJob


class BlobPart(msgspec.Struct, tag=True, array_like=True):
    slot: int
    size: int


class BlobEnd(msgspec.Struct, tag=True, array_like=True):
    pass


class Finish(msgspec.Struct, tag=True, array_like=True):
    directory: str
    lowers: tuple[str, ...]


class SlotFree(msgspec.Struct, tag=True, array_like=True):
    slot: int


class Made(msgspec.Struct, tag=True, array_like=True):
    layer: MadeLayer


class Failed(msgspec.Struct, tag=True, array_like=True):
    """`kind`: a class of `zeropull.errors`, or OSError with its `number`."""

    kind: str
    message: str
    number: int = 0

    @classmethod
    def of(cls, error: errors.ZeropullError | OSError) -> Failed:
        if isinstance(error, OSError):
            return cls("OSError", error.strerror or str(error), error.errno or 0)
        return cls(type(error).__name__, str(error))

    def error(self) -> errors.ZeropullError | OSError:
        if self.kind == "OSError":
            return OSError(self.number, self.message)
        return _KINDS[self.kind](self.message)


_KINDS: dict[str, type[errors.ZeropullError]] = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.ZeropullError)
}

Order = Make | BlobPart | BlobEnd | Finish
Answer = Made | SlotFree | Failed

_encoder = msgspec.json.Encoder()
_orders = msgspec.json.Decoder(Order)
_answers = msgspec.json.Decoder(Answer)


def slot_memory(memory: memoryview, slot: int) -> memoryview:
    return memory[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES]


def send(to: socket.socket, message: Order | Answer) -> None:
    to.sendall(_encoder.encode(message))


def receive_order(where: socket.socket) -> Order | None:
    """None when the parent has gone."""
    packet = where.recv(_MESSAGE_MAX_BYTES)
    return _orders.decode(packet) if packet else None


def receive_answer(where: socket.socket) -> Answer | None:
    """None when the process has gone."""
    packet = where.recv(_MESSAGE_MAX_BYTES)
    return _answers.decode(packet) if packet else None
