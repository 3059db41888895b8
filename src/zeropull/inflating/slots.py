"""The memory and the tokens that an inflating process and its parent share."""

from __future__ import annotations

import os
import struct

# Enough for either side to go on while the other one does something else for some 20 ms, and small
# enough for the processor's caches.
INPUT_SLOTS, INPUT_SLOT_BYTES = 8, 512 << 10
OUTPUT_SLOTS, OUTPUT_SLOT_BYTES = 12, 1 << 20
_OUTPUT_START = INPUT_SLOTS * INPUT_SLOT_BYTES
MEMORY_BYTES = _OUTPUT_START + OUTPUT_SLOTS * OUTPUT_SLOT_BYTES

END, FAILED = -1, -2
"""Instead of a slot: nothing follows; a message of `count` bytes follows, and nothing else."""

MESSAGE_BYTES = 1000

_TOKEN = struct.Struct("<iI")


def input_slot(number: int) -> slice:
    return slice(number * INPUT_SLOT_BYTES, (number + 1) * INPUT_SLOT_BYTES)


def output_slot(number: int) -> slice:
    start = _OUTPUT_START + number * OUTPUT_SLOT_BYTES
    return slice(start, start + OUTPUT_SLOT_BYTES)


def write_token(pipe: int, slot: int, count: int) -> None:
    """A few bytes, which a pipe takes whole and at once."""
    os.write(pipe, _TOKEN.pack(slot, count))


def read_token(pipe: int) -> tuple[int, int] | None:
    """(slot, count); None when the other end is closed. Blocks."""
    record = os.read(pipe, _TOKEN.size)
    return _TOKEN.unpack(record) if len(record) == _TOKEN.size else None
