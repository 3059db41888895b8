"""One HTTP/1.1 connection to a container, kept alive between requests (RFC 9112)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, cast

import httptools

from zeropull.gateway.known_answer import MAX_BYTES as MAX_KNOWN_BYTES
from zeropull.gateway.known_answer import KnownAnswerHead, KnownAnswerHeads, whole_chunks

MAX_HEAD_BYTES = 64 * 1024

_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class Exchange(Protocol):
    """What an upstream connection tells the request that it carries at the moment."""

    def on_response_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None: ...
    def on_response_body(self, data: bytes) -> None: ...
    def on_response_complete(self, reusable: bool) -> None: ...
    def on_known_head(self, head: KnownAnswerHead) -> None:
        """As `on_response_head`; the body comes in chunks."""

    def on_whole_response(self, head: KnownAnswerHead, body: bytes) -> None:
        """All of an answer at once; the connection can be used again."""

    def on_response_flush(self) -> None:
        """Everything that one read brought has been handed over."""

    def on_upstream_lost(self, malformed: bool) -> None:
        """The connection is gone before the answer was complete."""

    def on_upstream_writable(self) -> None:
        """The send buffer has drained; only told when `writable` was false."""


class UpstreamConnection(asyncio.Protocol):
    """Carries one exchange at a time. The owner pools it while `exchange` is None."""

    __slots__ = (
        "_answered",
        "_chunked",
        "_close_delimited",
        "_first",
        "_head_bytes",
        "_head_only",
        "_headers",
        "_in_head",
        "_known_answers",
        "_last_headers",
        "_out_of_step",
        "_parser",
        "_raw",
        "_repeating",
        "_reusable",
        "closed",
        "exchange",
        "idle_since_s",
        "pool",
        "transport",
        "writable",
    )

    def __init__(self, pool: list[UpstreamConnection], known_answers: KnownAnswerHeads) -> None:
        self._known_answers = known_answers
        self.pool = pool  # where it may stand idle; it takes itself out when the peer closes it
        self.exchange: Exchange | None = None
        self.transport: asyncio.Transport
        self.closed = False
        self.writable = True
        self.idle_since_s = 0.0
        self._headers: list[tuple[bytes, bytes]] = []
        self._last_headers = self._headers
        self._parser = httptools.HttpResponseParser(self)
        self._in_head = True
        self._head_bytes = 0
        self._close_delimited = False
        self._head_only = False
        self._answered = False  # the read being parsed has brought the end of an answer
        self._reusable = True  # and leaves the connection open; so does that no answer has come
        self._out_of_step = False  # and there was more behind it
        self._raw: Callable[[bytes], None] | None = None
        # The known head of the answer in progress, as long as its chunks come whole.
        self._chunked: KnownAnswerHead | None = None
        self._repeating = False  # the parser is being told that head after all
        self._first = b""  # what its first read brought, while its head may become a known one

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's derive from no such class

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self.transport.abort()  # nobody asked: the connection is out of step
            return
        if self._chunked is not None:
            self._take_chunks(exchange, self._chunked, data, 0)
            return
        if self._in_head:
            if self._reusable and not self._head_bytes and self._raw is None:
                known = self._known_answers.find(data)
                if known is not None:
                    self._begin_known(exchange, known, data)
                    return
                self._first = data
            self._head_bytes += len(data)
        self._parse(exchange, data)

    def _begin_known(self, exchange: Exchange, head: KnownAnswerHead, data: bytes) -> None:
        start = len(head.data)
        if head.length_bytes >= 0:
            self.exchange = None
            exchange.on_whole_response(head, data[start:])
            return
        self._in_head = self._close_delimited = False
        self._chunked = head
        exchange.on_known_head(head)
        self._take_chunks(exchange, head, data, start)

    def _take_chunks(
        self, exchange: Exchange, head: KnownAnswerHead, data: bytes, start: int
    ) -> None:
        """Go on with a body whose chunks have all come whole up to here."""
        payloads, end, is_last = whole_chunks(data, start)
        for payload in payloads:
            exchange.on_response_body(payload)
        if is_last:
            self._chunked = self.exchange = None
            self._in_head = True
            exchange.on_response_complete(not self.closed)
        elif end == len(data):
            exchange.on_response_flush()
        else:
            self._chunked = None
            self._in_head = self._repeating = True
            self._head_bytes, self._answered = len(head.data), False
            self._parser.feed_data(head.data)
            self._repeating = False
            self._parse(exchange, data[end:])

    def _parse(self, exchange: Exchange, data: bytes) -> None:
        if self._raw is not None:
            self._raw(data)
        self._answered = self._reusable = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(malformed=True)
            return
        except httptools.HttpParserError:
            # A clean answer with bytes behind it has been handed over already: only close.
            self._fail(malformed=self.exchange is not None)
            return
        if self._out_of_step:
            # Never an answer to the exchange that may have taken over the connection just now.
            self._fail(malformed=True)
            return
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and self.exchange is exchange:
            self._fail(malformed=True)
            return
        if self._answered and self._first:
            if self._reusable:
                self._known_answers.remember(
                    self._first, self._last_headers, whole=self._first is data
                )
            self._first = b""
        elif self._first is data:
            self._first = data[:MAX_KNOWN_BYTES]  # the rest would be kept as long as it lasts
        if self.exchange is exchange:
            exchange.on_response_flush()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            if self in self.pool:
                self.pool.remove(self)
        elif self._close_delimited and not self._in_head and exc is None:
            exchange.on_response_complete(False)
        else:
            exchange.on_upstream_lost(False)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self.exchange is not None:
            self.exchange.on_upstream_writable()

    def begin(
        self, exchange: Exchange, *, raw: Callable[[bytes], None], head_only: bool = False
    ) -> None:
        """Carry an exchange whose answer is handed to `raw` byte for byte, before it is parsed.

        `head_only`: the answer has no body, whatever its headers say (HEAD).
        """
        self.exchange = exchange
        self._raw = raw
        self._head_only = head_only

    def abandon(self) -> None:
        """Drop the exchange and the connection with it: the peer sees that nobody waits."""
        self.exchange = None
        self.closed = True
        self.transport.abort()

    # The parser calls these.

    def on_message_begin(self) -> None:
        if self._answered:
            self._out_of_step = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        headers = self._headers
        self._headers = []
        self._last_headers = headers
        if self._repeating:
            self._in_head = self._close_delimited = False
            return
        if status < 200 or self.exchange is None or self._out_of_step:
            return
        self._in_head = False
        self._close_delimited = status not in (204, 304) and _FRAMING.isdisjoint(dict(headers))
        self.exchange.on_response_head(status, headers)
        if self._head_only:
            exchange, self.exchange = self.exchange, None
            # The parser waits for a body now, so that this connection cannot be used again.
            exchange.on_response_complete(False)

    def on_body(self, data: bytes) -> None:
        if self.exchange is not None and not self._out_of_step:
            self.exchange.on_response_body(data)

    def on_message_complete(self) -> None:
        if self._in_head:  # an interim answer, 100 to 199
            return
        self._answered = True
        self._in_head = True
        self._head_bytes = 0
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            self._reusable = not self.closed and self._parser.should_keep_alive()
            exchange.on_response_complete(self._reusable)

    def _fail(self, *, malformed: bool) -> None:
        exchange, self.exchange = self.exchange, None
        self.closed = True
        if self in self.pool:
            self.pool.remove(self)
        self.transport.abort()
        if exchange is not None:
            exchange.on_upstream_lost(malformed)


async def connect(
    address: tuple[str, int] | str,
    pool: list[UpstreamConnection],
    known_answers: KnownAnswerHeads,
    timeout_s: float,
) -> UpstreamConnection:
    """A new connection to (host, port), or to a Unix socket's path.

    Raises:
        OSError: it was refused; TimeoutError, which is an OSError too, after `timeout_s`.
    """
    loop = asyncio.get_running_loop()

    def made() -> UpstreamConnection:
        return UpstreamConnection(pool, known_answers)

    async with asyncio.timeout(timeout_s):
        connected: tuple[Any, UpstreamConnection]
        if isinstance(address, str):
            connected = await loop.create_unix_connection(made, address)
        else:
            connected = await loop.create_connection(made, *address)
    return connected[1]
