"""Everything that is not an invocation goes to the control plane as it came, and back.

The request's head is sent on with every header as it was (the signature covers Host), the answer's
bytes are handed on untouched; both are parsed only to know where they end.
"""

from __future__ import annotations

import json

from zeropull.awsprotocol.sigv4 import claimed_key_id
from zeropull.gateway import refusals
from zeropull.gateway.body import RequestBody
from zeropull.gateway.connection import ClientConnection
from zeropull.gateway.known_answer import KnownAnswerHead
from zeropull.gateway.refusals import Refusal
from zeropull.gateway.request import Request
from zeropull.gateway.state import GatewayState
from zeropull.gateway.upstream import UpstreamConnection

_INTERIM = b"HTTP/1.1 1"
_REQUEST_ID = b"x-amzn-requestid"
MAX_LINE_BYTES = 8190  # what the control plane reads of a line of a head
UNREADABLE = refusals.Refusal(
    400,
    "MalformedHttpRequestException",
    "The request's head is none that the API reads: its target begins with /, it has one Host, "
    f"each line has at most {MAX_LINE_BYTES} bytes, and Expect is 100-continue.",
)
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
MAX_EARLY_BYTES = 256 * 1024  # of a body may come before the connection stands; then reading stops
# Status lines of final answers; an interim one (100 to 199) is no answer yet.
_FINAL = tuple(b"HTTP/1.1 %d" % hundreds for hundreds in range(2, 6))
CONTROL_PLANE_DOWN = "The control plane does not answer at the moment; try again."


class Relay:
    """Handler of one relayed request; also the exchange of its upstream connection."""

    __slots__ = (
        "_answered",
        "_bodiless",
        "_body",
        "_chunked",
        "_client",
        "_done",
        "_early",
        "_early_bytes",
        "_held",
        "_is_ours",
        "_request",
        "_state",
        "_throttled",
        "_upstream",
    )

    def __init__(self, state: GatewayState, client: ClientConnection, request: Request) -> None:
        self._state = state
        self._client = client
        self._request = request
        self._upstream: UpstreamConnection | None = None
        self._early: list[bytes] = []
        self._early_bytes = 0
        self._body = RequestBody(state.relayed_bodies, client.address)  # counted, never kept
        self._bodiless = False
        self._held = b""  # of the answer, until its head is there
        self._is_ours = False  # the answer is the API's own
        self._chunked = False
        self._throttled = False
        self._answered = False
        self._done = False

    def start(self) -> None:
        request = self._request
        refusal = UNREADABLE if _is_unreadable(request) else None
        refusal = refusal or self._body.refusal(request.length_bytes)
        if refusal is not None:
            self._refuse(refusal)
            return
        self._bodiless = not self._may_be_admitted()
        lines = [b"%b %b HTTP/%b\r\n" % (request.method, request.target, self._version)]
        for name, value in request.headers:
            lower = name.lower()
            if lower in _FRAMING:
                if self._bodiless:
                    continue
                self._chunked |= lower == b"transfer-encoding"
            lines.append(b"%b: %b\r\n" % (name, value))
        lines.append(b"Content-Length: 0\r\n\r\n" if self._bodiless else b"\r\n")
        self._body.watch(self._refuse)
        self._pass_on(b"".join(lines))
        idle = self._state.pools.take_relay()
        if idle is not None:
            self._attach(idle)
        else:
            self._state.pools.connect_relay(self)

    def on_chunk(self, data: bytes) -> None:
        if self._bodiless or self._done:
            return
        try:
            self._body.count(len(data))
        except Refusal as refusal:
            self._refuse(refusal)
            return
        self._pass_on(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def on_complete(self) -> None:
        self._body.finish()
        if self._chunked:
            self._pass_on(b"0\r\n\r\n")

    def _may_be_admitted(self) -> bool:
        """False: it is refused whatever its body says. The control plane, which words the refusal
        as the protocol of the call wants it, need not have the body."""
        state, request = self._state, self._request
        if not state.signed or not state.table.version:
            return True
        key_id = claimed_key_id(request.query, request.headers)
        return key_id is not None and key_id in state.table.keys

    def connected(self, upstream: UpstreamConnection) -> bool:
        if self._done:
            return False
        self._attach(upstream)
        return True

    def connect_failed(self, *, refused: bool) -> None:
        if not self._done:
            self._fail()

    def on_client_gone(self) -> None:
        self._end()
        self._drop_upstream()

    def on_client_writable(self, writable: bool) -> None:
        if self._upstream is None:
            return
        if writable:
            self._upstream.transport.resume_reading()
        else:
            self._upstream.transport.pause_reading()

    @property
    def _version(self) -> bytes:
        return b"1.0" if self._request.http10 else b"1.1"

    def _attach(self, upstream: UpstreamConnection) -> None:
        self._upstream = upstream
        upstream.begin(self, raw=self._hand_back, head_only=self._request.method == b"HEAD")
        early, self._early = self._early, []
        upstream.transport.write(b"".join(early))
        self._throttle(not upstream.writable)

    def _pass_on(self, data: bytes) -> None:
        if self._done:
            return
        if self._upstream is None:
            self._early.append(data)
            self._early_bytes += len(data)
            self._throttle(self._early_bytes > MAX_EARLY_BYTES)
        else:
            self._upstream.transport.write(data)
            self._throttle(not self._upstream.writable)

    def _throttle(self, on: bool) -> None:
        if on != self._throttled:
            self._throttled = on
            self._client.throttle(on)

    # The connection to the control plane calls these.

    def _hand_back(self, data: bytes) -> None:
        if self._is_ours:
            self._client.write(data)
        else:
            self._held += data

    def on_response_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The raw bytes are held until here: an error without a request ID is none of the API's,
        but of the library that reads the control plane's requests."""
        if status >= 400 and not any(name == _REQUEST_ID for name, _ in headers):
            self._refuse(UNREADABLE)
            return
        self._is_ours = True

    def _pass_held(self) -> None:
        held, self._held = self._held, b""
        if not held:
            return
        if held.startswith(_INTERIM) and not self._is_ours:
            self._client.transport.write(held)
            return
        if not self._is_ours:
            self._held = held
            return
        if self._state.draining and held.startswith(_FINAL):
            status, end, rest = held.partition(b"\r\n")
            if end and self._client.announce_close(self._request):
                held = b"%b\r\nConnection: close\r\n%b" % (status, rest)
        self._answered = True
        self._client.write(held)

    def on_response_body(self, data: bytes) -> None:
        """So have these."""

    def on_known_head(self, head: KnownAnswerHead) -> None:
        """Not told to whoever takes the raw bytes."""

    def on_whole_response(self, head: KnownAnswerHead, body: bytes) -> None:
        """Not told to whoever takes the raw bytes."""

    def on_response_flush(self) -> None:
        self._pass_held()

    def on_response_complete(self, reusable: bool) -> None:
        self._pass_held()
        upstream, self._upstream = self._upstream, None
        assert upstream is not None
        self._end()
        if reusable and self._request.complete:
            self._state.pools.keep_relay(upstream, self._state.now_s)
        else:
            upstream.abandon()
        self._client.finished(keep_alive=reusable)

    def on_upstream_lost(self, malformed: bool) -> None:
        self._upstream = None
        if self._answered:
            self._end()
            self._client.transport.abort()
        else:
            self._fail()

    def on_upstream_writable(self) -> None:
        self._throttle(False)

    def _fail(self) -> None:
        self._refuse(refusals.service_unavailable(CONTROL_PLANE_DOWN))

    def _refuse(self, refusal: Refusal) -> None:
        """Answer as the API's JSON protocols do; clients of the others go by the status."""
        self._end()
        self._drop_upstream()
        if self._answered:
            self._client.transport.abort()
            return
        self._early = []
        self._throttle(False)
        body = {"__type": refusal.code, "message": str(refusal)}
        self._client.write(
            refusals.response(
                refusal.status,
                json.dumps(body).encode(),
                request_id=self._state.next_request_id(),
                content_type=b"application/x-amz-json-1.1",
                headers=refusals.error_headers(refusal.code),
                close=self._client.announce_close(self._request) or not self._request.complete,
            )
        )
        self._client.finished()

    def _end(self) -> None:
        self._done = True
        self._body.finish()
        self._body.release()

    def _drop_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abandon()


def _is_unreadable(request: Request) -> bool:
    """What the control plane's library would refuse with a traceback in its log."""
    hosts = 0
    for name, value in request.headers:
        lower = name.lower()
        hosts += lower == b"host"
        if len(name) + len(value) > MAX_LINE_BYTES:
            return True
        if lower == b"expect" and value.lower() != b"100-continue":
            return True
    if hosts != 1 and not (request.http10 and hosts == 0):
        return True
    target = request.target  # a proxy may have sent the absolute form
    return len(target) > MAX_LINE_BYTES or not target.startswith((b"/", b"http://", b"https://"))
