"""Event streams against botocore's parser."""

from __future__ import annotations

import json

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given, settings
from hypothesis import strategies as st

from zeropull.awsprotocol.event_stream import (
    EventDecoder,
    encode_event,
    encode_exception,
    encode_payload_part,
)
from zeropull.errors import IntegrityError

names = st.text("abc:-", min_size=1, max_size=20)
all_headers = st.dictionaries(names, st.text(max_size=40), max_size=5)


@settings(deadline=None)
@given(st.lists(st.tuples(all_headers, st.binary(max_size=500)), max_size=4), st.integers(1, 50))
def test_botocore_and_our_decoder_read_what_we_write(
    events: list[tuple[dict[str, str], bytes]], step: int
) -> None:
    stream = b"".join(encode_event(headers, payload) for headers, payload in events)
    theirs = EventStreamBuffer()
    theirs.add_data(stream)
    assert [(m.headers, m.payload) for m in theirs] == events
    ours = EventDecoder()
    read = [e for at in range(0, len(stream), step) for e in ours.feed(stream[at : at + step])]
    assert [(e.headers, e.payload) for e in read] == events
    assert ours.pending_bytes == 0


def test_a_payload_part_and_an_exception_have_the_headers_of_the_runtime() -> None:
    buffer = EventStreamBuffer()
    buffer.add_data(encode_payload_part(memoryview(b"abc")))
    buffer.add_data(encode_exception("ModelStreamError", {"Message": "m", "ErrorCode": "c"}))
    part, error = buffer
    assert part.headers[":event-type"] == "PayloadPart"
    assert part.headers[":message-type"] == "event"
    assert part.payload == b"abc"
    assert error.headers[":exception-type"] == "ModelStreamError"
    assert json.loads(error.payload) == {"Message": "m", "ErrorCode": "c"}


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_is_noticed(position: int, flip: int) -> None:
    frame = bytearray(encode_event({":message-type": "event"}, b"payload"))
    frame[position % len(frame)] ^= flip
    with pytest.raises(IntegrityError):
        EventDecoder().feed(bytes(frame))
