"""What a layer process and its parent say to each other.

The parent says `Make`, and writes the blob to the child's input; the process answers `Made`. In the
same way it answers `Finish`. Before that, the parent says `Lower` for each layer below that was not
said yet. Where something is wrong, the process says `Failed`, at any time, and ends.
"""

from __future__ import annotations

import msgspec

from zeropull import errors
from zeropull.layers.making import LayerJob, MadeLayer


class Make(msgspec.Struct, tag=True, array_like=True):
    job: LayerJob


class Lower(msgspec.Struct, tag=True, array_like=True):
    """The lowest comes first; each is said once."""

    directory: str


class Finish(msgspec.Struct, tag=True, array_like=True):
    directory: str


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

Order = Make | Lower | Finish
Answer = Made | Failed

_encoder = msgspec.json.Encoder()
_orders = msgspec.json.Decoder(Order)
_answers = msgspec.json.Decoder(Answer)


def encode_message(message: Order | Answer) -> bytes:
    return _encoder.encode(message)


def decode_order(packet: bytes) -> Order:
    return _orders.decode(packet)


def decode_answer(packet: bytes) -> Answer:
    return _answers.decode(packet)
