"""The client's side: HTTP/1.1 connections, their requests in order, and what becomes of each.

Requests of one connection are answered strictly in order (RFC 9112, section 9.3.2). While one is
being answered the next may have been read already; then reading pauses, which bounds it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol, cast

from zeropull.gateway import refusals
from zeropull.gateway.clients import address_of
from zeropull.gateway.refusals import Refusal
from zeropull.gateway.request import Handler, Request
from zeropull.gateway.request_reader import FAILED, RequestReader
from zeropull.gateway.state import GatewayState
from zeropull.gateway.whole_request import KnownHead

IDLE_S = 75.0  # a connection without a request is closed after this long
# The same while another gateway serves the port. Long enough that hardly a client sends its next
# request in the very moment of the end.
DRAINED_IDLE_S = 10.0
SILENCE_S = 60.0  # so is one that stays silent in the middle of a request
# Nor may a client keep a connection by sending a byte now and then.
HEAD_S = 30.0  # a request's head arrives within this
REQUEST_S = 600.0  # and the whole request within this: 25 MB take 400 s at 0.5 Mbit/s
MIN_BYTES_PER_S, RATE_AFTER_S = 1024, 30.0  # a request that comes slower than that is cut off
LINGER_BYTES = 64 << 20  # of a refused body are read and dropped, so that the refusal arrives
LINGER_S = 5.0


class WholeHandler(Handler, Protocol):
    """Answers a request that came whole, with a head that is known."""

    def start_whole(self, known: KnownHead, data: bytes, signature: bytes) -> None: ...


class Handlers(Protocol):
    """Makes the handler of each request."""

    def handler_for(self, client: ClientConnection, request: Request) -> Handler: ...
    def known_handler_for(self, client: ClientConnection, request: Request) -> WholeHandler:
        """Of a request that came at this moment with a head known before."""


class ClientConnection(asyncio.Protocol):
    """One client. `current` is the request being answered, `handler` what answers it, and `_ready`
    what was read behind it."""

    __slots__ = (
        "_advancing",
        "_answering",
        "_dropped_bytes",
        "_handlers",
        "_lingering_s",
        "_over",
        "_reader",
        "_reading_paused",
        "_ready",
        "_refusal",
        "_state",
        "_throttled",
        "active_s",
        "address",
        "closed",
        "closing",
        "current",
        "handler",
        "transport",
        "writable",
    )

    def __init__(self, state: GatewayState, handlers: Handlers) -> None:
        self._state = state
        self._handlers = handlers
        self.transport: asyncio.Transport
        self.address = ""  # of the client; see `zeropull.gateway.clients.address_of`
        self.current: Request | None = None
        self.handler: Handler | None = None
        self.closed = False
        self.closing = False  # the client has been told that this answer is the last one
        self.writable = True
        self.active_s = state.now_s
        self._reader = RequestReader(state, self)
        self._ready: deque[Request] = deque()
        self._reading_paused = False
        self._throttled = False  # the handler cannot take more of the body for the moment
        self._advancing = False
        self._answering = False  # a part of the current answer has gone to the client
        self._refusal: Refusal | None = None  # what follows the last answer: no request did
        self._over = False  # nothing that comes now is answered
        self._lingering_s = 0.0
        self._dropped_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's derive from no such class
        self.address = address_of(transport.get_extra_info("peername"))
        if not self._state.clients.enter(self):
            # No answer: whoever opens that many would be given as many buffers.
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        state, reader = self._state, self._reader
        self.active_s = state.now_s
        if self._refusal is not None or self._lingering_s:
            self._dropped_bytes += len(data)
            if self._dropped_bytes > LINGER_BYTES:
                self.transport.abort()
            return
        fresh = not (reader.bytes_read or self.current)  # between two requests
        if fresh:
            whole = state.known_requests.find(data)
            if whole is not None:
                known, body, signature = whole
                self.current = request = known.request
                self.handler = handler = self._handlers.known_handler_for(self, request)
                handler.start_whole(known, body, signature)
                return
        refusal = reader.feed(data)
        if refusal is not None:
            self._refuse_bytes(refusal)
            return
        if fresh and reader.completed is not None and not reader.bytes_read:
            state.known_requests.remember(data, reader.completed)
        if self._ready and not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._state.clients.leave(self)
        self._ready.clear()
        handler, self.current, self.handler = self.handler, None, None
        if handler is not None:
            handler.on_client_gone()

    def pause_writing(self) -> None:
        self.writable = False
        if self.handler is not None:
            self.handler.on_client_writable(False)

    def resume_writing(self) -> None:
        self.writable = True
        if self.handler is not None:
            self.handler.on_client_writable(True)

    # The reader calls these.

    def request_begun(self, request: Request) -> None:
        if self._over or self._lingering_s:
            return
        if self.current is None and not self._ready:
            self.current = request
            self._activate(request)
        else:
            self._ready.append(request)

    def body_came(self, request: Request, data: bytes) -> None:
        if self._over or self._lingering_s:
            return
        if request is self.current and self.handler is not None:
            self.handler.on_chunk(data)
        else:
            request.chunks.append(data)

    def request_ended(self, request: Request) -> None:
        if self._lingering_s:
            self.transport.close()
        elif request is self.current and self.handler is not None:
            self.handler.on_complete()

    # The handlers call these.

    def write(self, data: bytes) -> None:
        self._answering = True
        self.transport.write(data)

    def refuse(self, request: Request, refusal: Refusal, lines: bytes = b"") -> None:
        """Answer the current request with this error, and these lines in its head."""
        close = self.announce_close(request) or not request.complete
        self._write_refusal(refusal, lines, close=close)

    def announce_close(self, request: Request) -> bool:
        """Whether the answer's head must say that the connection ends with it."""
        if not request.keep_alive or self._state.draining:
            self.closing = True
        return self.closing

    def continue_body(self) -> None:
        """Tell a client that asked for it (Expect: 100-continue) to send the body."""
        self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def throttle(self, on: bool) -> None:
        """Stop or go on reading the body of the current request."""
        self._throttled = on
        self._update_reading()

    def finished(self, keep_alive: bool = True) -> None:
        """The current request is answered whole; the next one's turn."""
        request, self.current, self.handler = self.current, None, None
        if request is None or self.closed:
            return
        self._throttled = self._answering = False
        if self.closing or not (keep_alive and request.keep_alive) or self._state.stopping:
            self._ready.clear()
            self._close(request)
            return
        if not request.complete:
            self._linger()
            return
        if self._ready:
            self._advance()
        elif self._refusal is not None:
            self._write_bytes_refusal()
        elif self._reading_paused:
            self._update_reading()

    def sweep(self, now_s: float) -> None:
        """Close it when it has been silent for too long."""
        if self._lingering_s:
            silent = now_s > self._lingering_s
        elif (self.current is not None and self.current.complete) or self._throttled:
            return
        else:
            limit_s = SILENCE_S
            if not self._reader.bytes_read:
                limit_s = DRAINED_IDLE_S if self._state.draining else IDLE_S
            silent = now_s - self.active_s > limit_s or self._is_too_slow(now_s)
        if silent:
            self.transport.abort()

    def _is_too_slow(self, now_s: float) -> bool:
        reader = self._reader
        if not reader.bytes_read:
            return False
        age_s = now_s - reader.began_s
        if not reader.has_head:
            return age_s > HEAD_S
        return age_s > REQUEST_S or (
            age_s > RATE_AFTER_S and reader.bytes_read < MIN_BYTES_PER_S * age_s
        )

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for an answer on it."""
        return self.current is None and not self._ready

    def close_if_idle(self) -> None:
        if self.is_idle:
            self.transport.close()

    # Requests in order

    def _activate(self, request: Request) -> None:
        self.handler = handler = self._handlers.handler_for(self, request)
        handler.start()
        if request.chunks:
            chunks, request.chunks = request.chunks, []
            for chunk in chunks:
                if request is self.current:
                    handler.on_chunk(chunk)
        if request.complete and request is self.current:
            handler.on_complete()

    def _advance(self) -> None:
        if self._advancing:  # an answer that came at once: the loop below goes on
            return
        self._advancing = True
        try:
            while self._ready and self.current is None and not self.closed:
                request = self._ready.popleft()
                self.current = request
                self._activate(request)
        finally:
            self._advancing = False
        if self._refusal is not None and self.current is None:
            self._write_bytes_refusal()
        else:
            self._update_reading()

    def _update_reading(self) -> None:
        pause = self._throttled or bool(self._ready) or self._refusal is not None
        if pause != self._reading_paused and not self.closed:
            self._reading_paused = pause
            if pause:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def _refuse_bytes(self, refusal: Refusal) -> None:
        """What came last is no request: answer what came before it, then this, and close."""
        if self._over or self._lingering_s:
            return
        self._refusal = refusal
        if self._ready and not self._ready[-1].complete:
            self._ready.pop()
        elif self.current is not None and (not self.current.complete or refusal is FAILED):
            handler, self.current, self.handler = self.handler, None, None
            if handler is not None:
                handler.on_client_gone()
            if self._answering:  # nothing can be said in the middle of an answer
                self.transport.abort()
                return
        if self.current is None and not self._ready:
            self._write_bytes_refusal()
        else:
            self._update_reading()

    def _write_bytes_refusal(self) -> None:
        assert self._refusal is not None
        if not self.closed:
            self._write_refusal(self._refusal, b"", close=True)
            self._linger()

    def _write_refusal(self, refusal: Refusal, lines: bytes, *, close: bool) -> None:
        self.transport.write(
            refusals.response(
                refusal.status,
                refusal.body(),
                request_id=self._state.next_request_id(),
                headers=refusals.error_headers(refusal.code) + lines,
                close=close,
            )
        )

    def _close(self, request: Request) -> None:
        self._over = True
        if request.complete:
            self.transport.close()
        else:
            self._linger()

    def _linger(self) -> None:
        # Closing with unread bytes would reset the connection, and the answer with it.
        self._lingering_s = self._state.now_s + LINGER_S
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
