"""A client's bytes become requests (RFC 9112). The parser is httptools', which is llhttp in strict
mode."""

from __future__ import annotations

from typing import Protocol

import httptools

from zeropull.gateway.refusals import Refusal
from zeropull.gateway.request import Request
from zeropull.gateway.state import GatewayState
from zeropull.telemetry import get_logger

MAX_HEAD_BYTES = 64 * 1024
# What chunk headers and trailers may add to a body of the largest size. The body itself is bounded
# by who takes it.
_CHUNKED_FACTOR, _CHUNKED_OVERHEAD = 5, 64 << 10

MALFORMED = Refusal(
    400, "MalformedHttpRequestException", "The request is not valid HTTP/1.1 (RFC 9112)."
)
UPGRADE = Refusal(
    400, "ValidationError", "Upgrade and CONNECT are not supported: send plain HTTP/1.1 requests."
)
NO_HOST = Refusal(
    400, "MalformedHttpRequestException", "A request of HTTP/1.1 has one Host header (RFC 9112)."
)
LONG_HEAD = Refusal(
    431, "ValidationError", f"The request's head is longer than {MAX_HEAD_BYTES} bytes."
)
FAILED = Refusal(500, "InternalFailure", "The request failed within the gateway; its log says why.")

_HOST_LENGTH, _CODING_LENGTH = len(b"host"), len(b"transfer-encoding")

log = get_logger(__name__)


class RequestEvents(Protocol):
    """What a reader tells, in the order of the bytes."""

    def request_begun(self, request: Request) -> None:
        """Its head is there."""

    def body_came(self, request: Request, data: bytes) -> None: ...
    def request_ended(self, request: Request) -> None: ...


class RequestReader:
    """Reads the requests of one connection until one is refused; then it must be fed no more.

    `reading` is the request whose head or body is being read. `bytes_read`: since that request
    began, 0 exactly between two requests, where `began_s` means nothing.
    """

    __slots__ = (
        "_events",
        "_in_message",
        "_parser",
        "_refusal",
        "_state",
        "began_s",
        "bytes_read",
        "completed",
        "reading",
    )

    def __init__(self, state: GatewayState, events: RequestEvents) -> None:
        self._state = state
        self._events = events
        self._parser = httptools.HttpRequestParser(self)
        self._in_message = False
        self._refusal: Refusal | None = None
        self.reading: Request | None = None
        self.completed: Request | None = None  # the last one that the newest data has ended
        self.bytes_read = 0
        self.began_s = 0.0

    @property
    def has_head(self) -> bool:
        """Of the request that is being read."""
        return self.reading is not None and bool(self.reading.method)

    def feed(self, data: bytes) -> Refusal | None:
        """The next bytes; why they are no request that can be answered, None = they are."""
        if not self.bytes_read:
            self.began_s = self._state.now_s
        self.bytes_read += len(data)
        self.completed = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            log.exception("a request failed within the gateway")
            return FAILED
        except httptools.HttpParserUpgrade:
            return UPGRADE
        except httptools.HttpParserError:
            return self._refusal or MALFORMED
        if self._refusal is not None:
            return self._refusal
        if self._in_message:
            if not self.bytes_read:
                # It began behind the end of another: the next bytes are no beginning.
                self.bytes_read, self.began_s = 1, self._state.now_s
            if self.bytes_read > self._limit():
                return LONG_HEAD
        return None

    def _limit(self) -> int:
        if not self.has_head:
            return MAX_HEAD_BYTES
        return _CHUNKED_FACTOR * self._state.settings.max_body_bytes + _CHUNKED_OVERHEAD

    # The parser calls these.

    def on_message_begin(self) -> None:
        self._in_message = True
        self.reading = None

    def on_url(self, part: bytes) -> None:
        if self.reading is None:
            self.reading = Request(part)
        else:  # a request target that came in pieces
            self.reading = Request(self.reading.target + part)

    def on_header(self, name: bytes, value: bytes) -> None:
        reading = self.reading
        # Trailers come after the head and are dropped; nothing is read of what was refused.
        if reading is not None and not reading.method:
            reading.headers.append((name, value))

    def on_headers_complete(self) -> None:
        request, parser = self.reading, self._parser
        if request is None or self._refusal is not None:
            return
        if parser.should_upgrade():
            # Refused before anybody begins to answer it.
            self._refusal, self.reading = UPGRADE, None
            return
        version = parser.get_http_version()
        if version not in ("1.0", "1.1"):
            self._refusal, self.reading = MALFORMED, None
            return
        if (refusal := _doubt(request.headers, version)) is not None:
            self._refusal, self.reading = refusal, None
            return
        request.method = parser.get_method()
        request.keep_alive = parser.should_keep_alive()
        request.http10 = version == "1.0"
        request.received_s = self._state.monotonic()
        self._events.request_begun(request)

    def on_body(self, data: bytes) -> None:
        if self.reading is not None:
            self._events.body_came(self.reading, data)

    def on_message_complete(self) -> None:
        request, self.reading = self.reading, None
        self._in_message = False
        self.completed = request
        self.bytes_read = 0
        if request is not None:
            request.complete = True
            self._events.request_ended(request)


def _doubt(headers: list[tuple[bytes, bytes]], version: str) -> Refusal | None:
    """What leaves open for whom a request is, or where it ends (RFC 9112, sections 3.2 and 6.1)."""
    hosts = codings = 0
    for name, value in headers:
        if len(name) == _HOST_LENGTH and name.lower() == b"host":
            hosts += 1
        elif len(name) == _CODING_LENGTH and name.lower() == b"transfer-encoding":
            codings += 1
            if value.strip(b" \t").lower() != b"chunked":
                return MALFORMED
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        return NO_HOST
    return MALFORMED if codings > 1 else None
