"""Requests with a remembered head are read as the strict parser reads them, or by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeropull.gateway.connection import ClientConnection
from zeropull.gateway.invocation_head import InvocationHead
from zeropull.gateway.request import Request
from zeropull.gateway.state import GatewayState
from zeropull.gateway.whole_request import MAX_REMEMBERED, KnownHead, KnownRequests, WholeRequests
from zeropull.resources.settings import GatewaySettings

START = b"POST /endpoints/chat/invocations HTTP/1.1\r\nHost: x\r\n"
HEAD = (
    START + b"Content-Type: application/json\r\nX-Amzn-SageMaker-Target-Variant: a\r\n"
    b"Content-Length: 4\r\n\r\n"
)
GOOD = HEAD + b"body"
NASTY = [
    HEAD,
    HEAD + b"bod",
    HEAD + b"other",
    HEAD + b"body\r\n\r\n",
    HEAD + b"bodyPOST /endpoints/chat/invocations HTTP/1.1\r\n\r\n",
    GOOD + GOOD,
    GOOD + b"x",
    b"\r\n" + GOOD,
    b"\r\n\r\n" + GOOD,
    GOOD.replace(b"\r\n", b"\n"),
    GOOD.replace(b"POST", b"GET"),
    GOOD.replace(b"/endpoints/", b"/"),
    GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"),
    START + b"Content-Length: 4\r\n\n\r\n\r\n\r\n\r\n",
    START + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nbody",
    START + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nbody",
    START + b"Content-Length: 4, 4\r\n\r\nbody",
    START + b"Content-Length: +4\r\n\r\nbody",
    START + b"Content-Length: 0x4\r\n\r\nbody",
    START + b"Content-Length: 04\r\n\r\nbody",
    START + b"Content-Length : 4\r\n\r\nbody",
    START + b"Content-Length: 4\r\n 4\r\n\r\nbody",
    START + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    START + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
    START + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    START + b"X: y\r\n folded\r\nContent-Length: 4\r\n\r\nbody",
    START + b"X: y\rContent-Length: 4\r\n\r\nbody",
    START + b"X: \x00\r\nContent-Length: 4\r\n\r\nbody",
    START + b"Connection: close\r\nContent-Length: 4\r\n\r\nbody",
    START + b"Connection: keep-alive\r\nContent-Length: 4\r\n\r\nbody",
    START + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\nbody",
    START + b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\nbody",
    START + b"\r\nbody",
    START + b"Content-Length: 0\r\n\r\n",
]


class Transport:
    def __init__(self) -> None:
        self.said: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.said.append(data.partition(b"x-amzn-RequestId")[0])

    def close(self) -> None:
        self.said.append("closed")

    def abort(self) -> None:
        self.said.append("aborted")

    def get_extra_info(self, name: str) -> tuple[str, int]:
        assert name == "peername"
        return "127.0.0.1", 1

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class Echo:
    """A handler that answers as soon as the request is whole."""

    def __init__(self, client: ClientConnection, request: Request, seen: list[Any]) -> None:
        self.client, self.request, self.seen = client, request, seen
        self.body = b""

    def start(self) -> None:
        self.understand(InvocationHead(self.request.headers))

    def understand(self, head: InvocationHead) -> None:
        self.known = (head.forward, head.variant, head.length_bytes, head.expects_continue)

    def start_whole(self, known: KnownHead, body: bytes, signature: bytes) -> None:
        assert signature == b""
        self.understand(known.head)
        assert known.lines == known.head.container_lines(len(body))
        self.on_chunk(body)
        self.on_complete()

    def on_chunk(self, data: bytes) -> None:
        self.body += data

    def on_complete(self) -> None:
        request = self.request
        facts = (request.target, request.path, request.query, request.method, request.headers)
        ends = (request.keep_alive, request.http10, request.complete)
        self.seen.append((*facts, *ends, self.known, self.body))
        self.client.finished()

    def on_client_gone(self) -> None:
        self.seen.append("gone")

    def on_client_writable(self, writable: bool) -> None: ...


class Forgetful(WholeRequests):
    def find(self, data: bytes) -> None:
        return None


class Handlers:
    """Makes the same handler for all requests."""

    def __init__(self, handler: Callable[..., Any], seen: list[Any]) -> None:
        self.handler, self.seen = handler, seen

    def handler_for(self, client: ClientConnection, request: Request) -> Any:
        return self.handler(client, request, self.seen)

    known_handler_for = handler_for


class Peer:
    """A connection, and what became of its bytes."""

    requests: Any

    def __init__(self, *, remembers: bool) -> None:
        self._connect(WholeRequests() if remembers else Forgetful(), Echo)

    def _connect(self, requests: KnownRequests, handler: Callable[..., Any]) -> None:
        self.seen: list[Any] = []
        self.requests = requests
        settings = GatewaySettings(max_body_bytes=100, verify_signatures=False)
        state = GatewayState(settings, api_socket="/nonexistent")
        state.known_requests = requests
        state.next_request_id = lambda: b"id"
        self.connection = ClientConnection(state, Handlers(handler, self.seen))
        self.transport = Transport()
        self.connection.connection_made(cast(Any, self.transport))

    def feed(self, *parts: bytes) -> list[Any]:
        for part in parts:
            if not {"closed", "aborted"} & set(self.transport.said):
                self.connection.data_received(part)
        return [self.seen, self.transport.said]


@pytest.mark.parametrize("nasty", NASTY, ids=range(len(NASTY)))
def test_whatever_comes_is_read_as_the_parser_reads_it(nasty: bytes) -> None:
    for parts in ((nasty, nasty, GOOD), (GOOD, nasty, nasty, GOOD), (nasty[:30], nasty[30:], GOOD)):
        assert Peer(remembers=True).feed(*parts) == Peer(remembers=False).feed(*parts)


@given(st.lists(st.sampled_from([GOOD, HEAD, b"body", *NASTY]), max_size=6), st.integers(1, 90))
def test_in_any_order_and_in_any_pieces(parts: list[bytes], size: int) -> None:
    assert Peer(remembers=True).feed(*parts) == Peer(remembers=False).feed(*parts)
    whole = b"".join(parts)
    pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
    assert Peer(remembers=True).feed(*pieces) == Peer(remembers=False).feed(*pieces)


def test_the_second_time_needs_no_parser() -> None:
    peer = Peer(remembers=True)
    peer.feed(GOOD)
    assert peer.requests.find(HEAD + b"abcd") is not None
    peer.connection._reader._parser = cast(Any, None)
    (seen, said) = peer.feed(HEAD + b"abcd")
    assert [each[-1] for each in seen] == [b"body", b"abcd"]
    assert said == []
    peer.requests.forget()
    assert peer.requests.find(HEAD + b"abcd") is None


def test_what_is_remembered_is_bounded() -> None:
    peer = Peer(remembers=True)
    for number in range(MAX_REMEMBERED + 5):
        peer.feed(START + b"X: %d\r\nContent-Length: 0\r\n\r\n" % number)
    assert 0 < len(peer.requests._known) <= MAX_REMEMBERED
    peer.feed(START + b"X: %b\r\nContent-Length: 0\r\n\r\n" % (b"y" * 3000))
    assert all(len(head) <= 2048 for head in peer.requests._known)
