"""Answers with a remembered head are read as the strict parser reads them, or by it."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeropull.gateway.known_answer import MAX_REMEMBERED, KnownAnswerHead, KnownAnswerHeads
from zeropull.gateway.upstream import UpstreamConnection

HEAD = (
    b"HTTP/1.1 200 OK\r\nDate: Thu, 26 Nov 2026 01:20:00 GMT\r\nContent-Type: application/json\r\n"
    b"Content-Length: 4\r\nX-Amzn-SageMaker-Custom-Attributes: a\r\n\r\n"
)
GOOD = HEAD + b"body"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n"
TOKENS = b"3\r\none\r\nA\r\ntwo  three\r\n"
END = b"0\r\n\r\n"
STREAM = STREAM_HEAD + TOKENS + END
START = b"HTTP/1.1 200 OK\r\n"
NASTY = [
    HEAD,
    HEAD + b"bod",
    HEAD + b"body\r\n\r\n",
    HEAD + b"bodyHTTP/1.1 200 OK\r\n\r\n",
    GOOD + GOOD,
    GOOD + b"x",
    b"\r\n" + GOOD,
    GOOD.replace(b"\r\n", b"\n"),
    START + b"Content-Length: 4\r\n\n\r\n\r\n\r\n\r\n",
    START + b"Content-Length: 4\n\n\r\n\r\n\r\n\r\n",
    START + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nbody",
    START + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nbody",
    START + b"Content-Length: 4, 4\r\n\r\nbody",
    START + b"Content-Length: +4\r\n\r\nbody",
    START + b"Content-Length: 0x4\r\n\r\nbody",
    START + b"Content-Length: -4\r\n\r\nbody",
    START + b"Content-Length: 04\r\n\r\nbody",
    START + b"Content-Length : 4\r\n\r\nbody",
    START + b"Content-Length: 4\r\n 4\r\n\r\nbody",
    START + b"Content-Length: 99999999999999999999999\r\n\r\nbody",
    START + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    START + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
    START + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    START + b"X: y\r\n folded\r\nContent-Length: 4\r\n\r\nbody",
    START + b"X: y\rContent-Length: 4\r\n\r\nbody",
    START + b"X: \x00\r\nContent-Length: 4\r\n\r\nbody",
    START + b"Connection: close\r\nContent-Length: 4\r\n\r\nbody",
    START + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\nbody",
    START + b"\r\nbody",
    START + b"Content-Length: 0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nbody",
    b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\nbody",
    b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD,
    b"HTTP/1.1 100 Continue\r\nContent-Length: 4\r\n\r\nbody",
    b"HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nbody",
    b"HTTP/1.1 500 Error\r\nContent-Length: 4\r\n\r\nbody",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nbody",
    b"HTTP/2 200 OK\r\nContent-Length: 4\r\n\r\nbody",
    b"\r\n\r\n",
    b"",
    STREAM_HEAD,
    STREAM_HEAD + END,
    STREAM_HEAD + TOKENS,
    STREAM + b"x",
    STREAM + GOOD,
    STREAM + STREAM,
    STREAM_HEAD + b"4\r\none\r\n" + END,
    STREAM_HEAD + b"2\r\none\r\n" + END,
    STREAM_HEAD + b"3 \r\none\r\n" + END,
    STREAM_HEAD + b"3;a=b\r\none\r\n" + END,
    STREAM_HEAD + b"0x3\r\none\r\n" + END,
    STREAM_HEAD + b"+3\r\none\r\n" + END,
    STREAM_HEAD + b"1_0\r\none\r\n" + END,
    STREAM_HEAD + b"\r\none\r\n" + END,
    STREAM_HEAD + b"-1\r\none\r\n" + END,
    STREAM_HEAD + b"00000000000000003\r\none\r\n" + END,
    STREAM_HEAD + b"ffffffffffffffffff\r\none\r\n" + END,
    STREAM_HEAD + b"3\none\r\n" + END,
    STREAM_HEAD + b"3\r\none\n" + END,
    STREAM_HEAD + TOKENS + b"0\r\nX: trailer\r\n\r\n",
    STREAM_HEAD + TOKENS + b"000\r\n\r\n",
    STREAM_HEAD + TOKENS + b"0\r\n\n",
    STREAM_HEAD.replace(b"200", b"500") + TOKENS + END,
    STREAM_HEAD.replace(b"1.1", b"1.0") + TOKENS + END,
    STREAM_HEAD.replace(b"chunked", b"gzip, chunked") + TOKENS + END,
    STREAM_HEAD.replace(b"chunked", b"Chunked") + TOKENS + END,
    STREAM_HEAD.replace(b"chunked", b"chunked, chunked") + TOKENS + END,
    STREAM_HEAD.replace(b"content-type: text/plain", b"connection: close") + TOKENS + END,
    b"HTTP/1.1 100 Continue\r\n\r\n" + STREAM,
]


class Seen:
    """Everything that an exchange is told, however it is cut."""

    def __init__(self) -> None:
        self.head: tuple[int, list[tuple[bytes, bytes]]] | None = None
        self.body = b""
        self.end = ""
        self.whole = False
        self.flushes = 0
        self.known = False

    def on_response_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        assert self.head is None
        self.head = (status, headers)

    def on_response_body(self, data: bytes) -> None:
        self.body += data

    def on_response_complete(self, reusable: bool) -> None:
        assert not self.end
        self.end = "kept" if reusable else "complete"

    def on_whole_response(self, head: KnownAnswerHead, body: bytes) -> None:
        self.on_response_head(200, head.headers)
        self.on_response_body(body)
        self.on_response_complete(True)
        self.whole = True

    def on_known_head(self, head: KnownAnswerHead) -> None:
        self.on_response_head(200, head.headers)
        self.known = True

    def on_response_flush(self) -> None:
        self.flushes += 1

    def on_upstream_lost(self, malformed: bool) -> None:
        assert not self.end
        self.end = "malformed" if malformed else "lost"

    def on_upstream_writable(self) -> None: ...

    def told(self) -> tuple[object, ...]:
        return self.head, self.body, self.end


class Nowhere:
    def abort(self) -> None: ...


class Forgetful(KnownAnswerHeads):
    def find(self, data: bytes) -> None:
        return None


def connection(heads: KnownAnswerHeads) -> UpstreamConnection:
    made = UpstreamConnection([], heads)
    made.connection_made(cast(asyncio.BaseTransport, Nowhere()))
    return made


def told(heads: KnownAnswerHeads, reads: list[bytes]) -> list[Seen]:
    """What the exchanges of one connection see, a new one for each read that needs it."""
    used, seen = connection(heads), []
    for read in reads:
        if used.exchange is None and not used.closed:
            seen.append(Seen())
            used.exchange = seen[-1]
        if not used.closed:
            used.data_received(read)
    return seen


def assert_as_strict(reads: list[bytes]) -> None:
    heads = KnownAnswerHeads()
    for _ in range(3):  # with nothing remembered, and then with all that these very reads left
        fast, strict = told(heads, reads), told(Forgetful(), reads)
        assert [one.told() for one in fast] == [one.told() for one in strict]


def test_a_known_head_needs_no_parser() -> None:
    heads = KnownAnswerHeads()
    other = HEAD + b"\r\n\r\n"
    assert [one.whole for one in told(heads, [GOOD, GOOD, other])] == [False, True, True]
    assert told(heads, [other])[0].told() == told(Forgetful(), [other])[0].told()


def test_a_stream_whose_chunks_come_whole_needs_no_parser_from_its_second_time_on() -> None:
    heads = KnownAnswerHeads()
    reads = [STREAM_HEAD, b"3\r\none\r\n", b"3\r\ntwo\r\n4\r\nfour\r\n", END]
    first, second, at_once, cut, after = told(
        heads, [*reads, *reads, STREAM, STREAM[:-9], STREAM[-9:], STREAM]
    )
    assert not first.known
    for one in (second, at_once, cut, after):
        assert one.known
        assert one.told() == at_once.told() or one is second
    assert second.told() == first.told()
    assert (second.body, second.end, second.flushes) == (b"onetwofour", "kept", 3)
    assert (at_once.body, at_once.flushes) == (b"onetwo  three", 0)


@pytest.mark.parametrize("nasty", NASTY)
def test_what_is_unusual_is_read_as_ever(nasty: bytes) -> None:
    assert_as_strict([GOOD, STREAM, nasty, GOOD, nasty[:-4] + b"\r\n\r\n", GOOD, STREAM])
    assert_as_strict([nasty, nasty])
    assert_as_strict([nasty[:20], nasty[20:], GOOD, nasty])
    half = len(STREAM_HEAD) + 6
    assert_as_strict([STREAM, nasty[:half], nasty[half:], STREAM])


@given(
    st.lists(st.sampled_from([GOOD, STREAM, *NASTY]), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 300), st.sampled_from(b"\r\n :,0459aZ\x00\xff")), max_size=3),
    st.lists(st.integers(0, 400), max_size=3),
)
def test_no_mutation_is_read_otherwise(
    answers: list[bytes], changes: list[tuple[int, int]], cuts: list[int]
) -> None:
    data = bytearray(b"".join(answers))
    for place, byte in changes:
        if data:
            data[place % len(data)] = byte
    pieces, last = [], 0
    for cut in [*sorted(cuts), len(data)]:
        pieces.append(bytes(data[last:cut]))
        last = max(last, cut)
    assert_as_strict([GOOD, STREAM, *pieces, STREAM, GOOD])
    assert_as_strict([bytes(data), bytes(data)])
    assert_as_strict([STREAM, GOOD, *answers, GOOD])


def test_what_is_remembered_is_bounded() -> None:
    heads = KnownAnswerHeads()
    for count in range(3 * MAX_REMEMBERED):
        told(heads, [b"HTTP/1.1 200 OK\r\nX: %d\r\nContent-Length: 4\r\n\r\nbody" % count])
        assert len(heads._known) <= MAX_REMEMBERED
