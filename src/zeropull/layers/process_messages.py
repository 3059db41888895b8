"""What a layer process and its parent say to each other, and the memory that they share.

The parent says `Make`, then `BlobPart` for every piece of the blob that it has put into a slot, and
`BlobEnd`; the process answers `SlotFree` for slots that it has read, and in the end `Made`. So it
answers `Finish`, before which the parent says `Lower` for each layer below that was not said yet.
Where something is wrong the answer is `Failed`, at any time, and the process ends.
"""

from __future__ import annotations

import socket

import msgspec

from zeropull import errors
from zeropull.inflating.slots import INPUT_SLOT_BYTES, INPUT_SLOTS
from zeropull.layers.making import LayerJob, MadeLayer

MEMORY_BYTES = INPUT_SLOTS * INPUT_SLOT_BYTES

_MESSAGE_MAX_BYTES = 64 << 10  # paths are the longest things in them


class Make(msgspec.Struct, tag=True, array_like=True):
    job: LayerJob


class BlobPart(msgspec.Struct, tag=True, array_like=True):
    slot: int
    size: int


class BlobEnd(msgspec.Struct, tag=True, array_like=True):
    pass


class Lower(msgspec.Struct, tag=True, array_like=True):
    """The lowest comes first; each is said once."""

    directory: str


class Finish(msgspec.Struct, tag=True, array_like=True):
    directory: str


class SlotFree(msgspec.Struct, tag=True, array_like=True):
    slot: int


class Made(msgspec.Struct, tag=True, array_like=True):
    layer: MadeLayer


class Failed(msgspec.Struct, tag=True, array_like=True):
    """`kind`: a class of `zeropull.errors`, or OSError with its `number` and `path`."""

    kind: str
    message: str
    number: int = 0
    path: str | None = None

    @classmethod
    def of(cls, error: errors.ZeropullError | OSError) -> Failed:
        if isinstance(error, OSError):
            path = None if error.filename is None else str(error.filename)
            return cls("OSError", error.strerror or str(error), error.errno or 0, path)
        return cls(type(error).__name__, str(error))

    def error(self) -> errors.ZeropullError | OSError:
        if self.kind == "OSError":
            facts = (self.number, self.message, self.path)
            return OSError(*facts[: 2 if self.path is None else 3])
        return _KINDS[self.kind](self.message)


_KINDS: dict[str, type[errors.ZeropullError]] = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.ZeropullError)
}

Order = Make | BlobPart | BlobEnd | Lower | Finish
Answer = Made | SlotFree | Failed

_encoder = msgspec.json.Encoder()
_orders = msgspec.json.Decoder(Order)
_answers = msgspec.json.Decoder(Answer)


def send(to: socket.socket, message: Order | Answer) -> None:
    to.sendall(_encoder.encode(message))


def receive_order(where: socket.socket) -> Order | None:
    """None when the parent has gone."""
    packet = where.recv(_MESSAGE_MAX_BYTES)
    return _orders.decode(packet) if packet else None


def receive_answer(where: socket.socket) -> Answer | None:
    """None when the process has gone."""
    try:
        packet = where.recv(_MESSAGE_MAX_BYTES)
    except ConnectionResetError:
        # It ended with orders unread, which is said once, and before what it has answered.
        packet = where.recv(_MESSAGE_MAX_BYTES)
    return _answers.decode(packet) if packet else None
