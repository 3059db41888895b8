"""The client port reads requests as a strict parser does: h11, an implementation of RFC 9112 with
nothing in common with ours. However the bytes are cut, and whatever stands before and behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import h11
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from zeropull.gateway.connection import ClientConnection
from zeropull.gateway.request import Request
from zeropull.gateway.state import GatewayState
from zeropull.gateway.whole_request import KnownHead
from zeropull.resources.settings import GatewaySettings

LINE = b"POST /endpoints/chat/invocations HTTP/1.1\r\nHost: x\r\n"
KNOWN = LINE + b"Content-Type: a/b\r\nContent-Length: 4\r\n\r\nbody"
CHUNKED = LINE + b"Transfer-Encoding: chunked\r\n\r\n"
GOOD = [
    KNOWN,
    LINE + b"Content-Length: 0\r\n\r\n",
    LINE + b"\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    CHUNKED + b"3\r\nabc\r\n0\r\n\r\n",
    CHUNKED + b"3;a=b\r\nabc\r\n00000002\r\nde\r\n0\r\nTrailer: x\r\n\r\n",
    LINE + b"X:\r\nContent-Length: 4\r\n\r\nbody",
    LINE + b"X: \xe4 y\r\nContent-Length:4\r\n\r\nbody",
    LINE + b"X: POST /endpoints/chat/invocations HTTP/1.1\r\nContent-Length: 2\r\n\r\nok",
    LINE + b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\nbody",
    LINE + b"Content-Length: %d\r\n\r\n%b" % (len(KNOWN), KNOWN),  # a request in a body
]
BAD = [
    LINE + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nbody",
    LINE + b"Transfer-Encoding: gzip\r\n\r\nbody",
    LINE + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    LINE + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    LINE + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    LINE + b"Content-Length : 4\r\n\r\nbody",
    LINE + b"Content-Length: +4\r\n\r\nbody",
    LINE + b"Content-Length: -4\r\n\r\nbody",
    LINE + b"Content-Length: 0x4\r\n\r\nbody",
    LINE + b"Content-Length: 4 4\r\n\r\nbody",
    LINE + b"Content-Length: 99999999999999999999999\r\n\r\nbody",
    LINE + b"Content-Length:\r\n\r\nbody",
    LINE + b"X Y: z\r\n\r\n",
    LINE + b"X: a\x00b\r\n\r\n",
    LINE + b"X: a\rb\r\n\r\n",
    LINE + b": empty\r\n\r\n",
    LINE + b"no colon\r\n\r\n",
    CHUNKED + b"g\r\nabc\r\n0\r\n\r\n",
    CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n",
    CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n",
    CHUNKED + b"\r\nabc\r\n0\r\n\r\n",
    b"POST /x\r\nHost: x\r\n\r\n",
    b"POST /x HTTP/1.1 \r\nHost: x\r\n\r\n",
    b"P\x00ST /x HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PO ST /x HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello",
]
# RFC 9112 lets a server refuse these, and h11 is kinder than we are.
REFUSED_BY_US = [
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"POST /x HTTP/3.0\r\nHost: x\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nH: st\r\n\r\n",
    b"POST /x HTTP/1.1\r\nH: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nA: b\r\n\r\n",
    b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding::chunked, chunked\r\n\r\n0\r\n\r\n",
    b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nhost: y\r\n\r\n",
    LINE + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nbody",
    LINE + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nbody",
    LINE + b" folded: x\r\nContent-Length: 4\r\n\r\nbody",
    LINE + b"X: y\r\n z\r\nContent-Length: 4\r\n\r\nbody",
    CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n",
    CHUNKED + b"FFFFFFFFFFFFFFFFF\r\nabc\r\n0\r\n\r\n",
]
UPGRADES = [
    LINE + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\nbody",
    LINE + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
]


SETTINGS = GatewaySettings(max_body_bytes=100_000, verify_signatures=False)


@dataclass
class Read:
    """What was made of some bytes."""

    requests: list[tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]] = field(
        default_factory=list
    )
    is_refused: bool = False


def strictly(data: bytes) -> Read:
    """What h11 makes of it; every request is answered at once."""
    found, parser = Read(), h11.Connection(h11.SERVER)
    parser.receive_data(data)
    try:
        while True:
            event = parser.next_event()
            if isinstance(event, h11.Request):
                head = (event.method, event.target, list(event.headers))
                body = b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                found.requests.append((*head, body))
                parser.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                parser.send(h11.EndOfMessage())
                if parser.our_state is not h11.DONE or parser.their_state is not h11.DONE:
                    return found
                parser.start_next_cycle()
            else:
                return found
    except h11.RemoteProtocolError:
        found.is_refused = True
        return found


class Transport:
    def __init__(self) -> None:
        self.written = b""
        self.is_over = False

    def write(self, data: bytes) -> None:
        assert not self.is_over, "something is written behind the end"
        self.written += data

    def close(self) -> None:
        self.is_over = True

    write_eof = abort = close

    def get_extra_info(self, name: str) -> tuple[str, int]:
        assert name == "peername"
        return "127.0.0.1", 1

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class Echo:
    """Answers as soon as the request is whole, or when it is told to."""

    def __init__(self, peer: Peer, request: Request) -> None:
        self.peer, self.request, self.body = peer, request, b""

    def start(self) -> None: ...

    def start_whole(self, known: KnownHead, data: bytes, signature: bytes) -> None:
        self.on_chunk(data)
        self.on_complete()

    def on_chunk(self, data: bytes) -> None:
        self.body += data

    def on_complete(self) -> None:
        if self.peer.is_late:
            self.peer.late.append(self)
        else:
            self.answer()

    def answer(self) -> None:
        request, peer = self.request, self.peer
        headers = [(name.lower(), value.strip()) for name, value in request.headers]
        peer.found.requests.append((request.method, request.target, headers, self.body))
        peer.connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        peer.connection.finished()

    def on_client_gone(self) -> None:
        self.peer.late = [late for late in self.peer.late if late is not self]

    def on_client_writable(self, writable: bool) -> None: ...


class Peer:
    """Our side of one connection, with the memory of known heads that all tests share."""

    def __init__(self, *, is_late: bool = False) -> None:
        self.found, self.late, self.is_late = Read(), cast(list[Echo], []), is_late
        state = GatewayState(SETTINGS, api_socket="/nonexistent")
        self.connection = ClientConnection(state, cast(Any, self))
        self.transport = Transport()
        self.connection.connection_made(cast(Any, self.transport))
        for _ in range(2):  # from now on its head is known
            self.connection.data_received(KNOWN)
            self.answer_late()
        assert state.known_requests.find(KNOWN) is not None
        self.found, self.transport.written = Read(), b""

    def handler_for(self, client: ClientConnection, request: Request) -> Echo:
        return Echo(self, request)

    known_handler_for = handler_for

    def answer_late(self) -> None:
        while self.late:
            self.late.pop(0).answer()

    def feed(self, *pieces: bytes) -> Read:
        for piece in pieces:
            if piece and not self.transport.is_over:
                self.connection.data_received(piece)
            self.answer_late()
        written = self.transport.written
        refusals = written.count(b"HTTP/1.1 4")
        assert refusals <= 1
        assert written.count(b"HTTP/1.1 200") == len(self.found.requests)
        self.found.is_refused = refusals == 1
        return self.found


def assert_same(data: bytes, *pieces: bytes, late: tuple[bool, ...] = (False, True)) -> None:
    expected = strictly(data)
    for is_late in late:
        found = Peer(is_late=is_late).feed(*(pieces or (data,)))
        assert found == expected, (data, pieces)


@pytest.mark.parametrize("data", [*GOOD, *BAD], ids=range(len(GOOD) + len(BAD)))
def test_a_request_is_read_as_the_strict_parser_reads_it(data: bytes) -> None:
    for whole in (data, data + KNOWN, KNOWN + data, KNOWN + data + KNOWN, data + data):
        assert_same(whole)
        assert_same(whole, *(whole[at : at + 1] for at in range(len(whole))))


@pytest.mark.parametrize("data", [*GOOD, *BAD], ids=range(len(GOOD) + len(BAD)))
def test_it_may_be_cut_at_every_byte(data: bytes) -> None:
    whole = data + KNOWN
    for at in range(len(whole)):
        assert_same(whole, whole[:at], whole[at:], late=(at % 2 == 0,))


@pytest.mark.parametrize("data", REFUSED_BY_US, ids=range(len(REFUSED_BY_US)))
def test_what_is_open_to_doubt_is_refused(data: bytes) -> None:
    for at in range(len(data)):
        found = Peer(is_late=at % 2 == 0).feed(KNOWN + data[:at], data[at:] + KNOWN)
        assert len(found.requests) == 1
        assert found.is_refused


def test_a_known_head_in_the_middle_of_another_head_is_a_part_of_it() -> None:
    for behind in (b"POST /x HTTP/1.1\r\n", b"POST /x HTTP/1.1\r\nX: ", b"GET /y HTTP/1.1\r\nX: "):
        whole = KNOWN + behind + KNOWN
        assert_same(whole, KNOWN + behind, KNOWN)


@pytest.mark.parametrize("data", UPGRADES, ids=range(len(UPGRADES)))
def test_an_upgrade_is_refused_once_and_asked_of_nobody(data: bytes) -> None:
    for before in (b"", KNOWN, GOOD[4]):
        whole = before + data
        for at in range(len(whole)):
            found = Peer(is_late=at % 2 == 0).feed(whole[:at], whole[at:])
            assert len(found.requests) == bool(before)
            assert found.is_refused


@given(
    st.lists(st.sampled_from([*GOOD, *BAD, *REFUSED_BY_US]), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 400), st.sampled_from(b"\r\n :,0459aZ\x00\xff")), max_size=2),
    st.lists(st.integers(0, 600), max_size=4),
)
def test_no_mutation_and_no_cut_is_read_otherwise(
    requests: list[bytes], changes: list[tuple[int, int]], cuts: list[int]
) -> None:
    data = bytearray(b"".join(requests))
    for place, byte in changes:
        data[place % len(data)] = byte
    pieces, last = [], 0
    for cut in [*sorted(cuts), len(data)]:
        pieces.append(bytes(data[last:cut]))
        last = max(last, cut)
    whole = bytes(data)
    # Several spaces in the request line are one for us (RFC 9112, section 3): they frame nothing.
    assume(b"  " not in whole)
    found = Peer().feed(*pieces)
    expected = strictly(whole)
    # Where both read a request, it is the same one. Ours may refuse more.
    assert found.requests == expected.requests[: len(found.requests)]
    assert Peer(is_late=True).feed(*pieces).requests == found.requests
