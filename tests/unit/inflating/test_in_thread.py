"""Bytes put by one thread come out inflated in another one, with room for so many at most."""

from __future__ import annotations

import gzip
import threading

import pytest

from zeropull.errors import Unavailable
from zeropull.inflating.in_thread import InflatingInThread
from zeropull.inflating.readers import DamagedStream

CONTENT = b"all of it " * 300_000


def test_parts_come_out_in_the_order_in_which_they_were_put() -> None:
    packed = gzip.compress(CONTENT, 1)
    inflating = InflatingInThread(packed[:4])
    for start in range(0, len(packed), 777):
        inflating.put(packed[start : start + 777])
    inflating.end()
    assert b"".join(bytes(part) for part in inflating.parts()) == CONTENT
    inflating.close()


def test_plain_bytes_are_handed_on() -> None:
    inflating = InflatingInThread(b"plai")
    inflating.put(b"plain bytes")
    inflating.end()
    assert b"".join(bytes(part) for part in inflating.parts()) == b"plain bytes"
    inflating.close()


def test_a_reader_waits_for_what_is_still_to_come() -> None:
    packed = gzip.compress(CONTENT, 1)
    inflating = InflatingInThread(packed[:4])
    read: list[bytes] = []
    thread = threading.Thread(target=lambda: read.extend(map(bytes, inflating.parts())))
    thread.start()
    for start in range(0, len(packed), 10_000):
        inflating.put(packed[start : start + 10_000])
    inflating.end()
    thread.join(30.0)
    assert b"".join(read) == CONTENT
    inflating.close()


def test_a_stream_that_ends_early_is_damaged() -> None:
    packed = gzip.compress(CONTENT, 1)
    inflating = InflatingInThread(packed[:4])
    inflating.put(packed[:-20])
    inflating.end()
    with pytest.raises(DamagedStream):
        list(inflating.parts())
    inflating.close()


def test_nothing_can_be_put_or_read_after_the_end_of_it() -> None:
    inflating = InflatingInThread(b"\x1f\x8b\x08\0")
    inflating.close()
    with pytest.raises(Unavailable, match="inflating was stopped"):
        inflating.put(b"x")
    with pytest.raises(Unavailable, match="inflating was stopped"):
        list(inflating.parts())
