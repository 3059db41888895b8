"""An invocation at a copy: from its slot to the last byte of the answer."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from zeropull.gateway import refusals
from zeropull.gateway.body import RequestBody
from zeropull.gateway.connection import ClientConnection
from zeropull.gateway.known_answer import KnownAnswerHead
from zeropull.gateway.model_answer import AnswerLines, ModelAnswer
from zeropull.gateway.request import Request
from zeropull.gateway.results import SERVED, Result
from zeropull.gateway.routing import Group, Target
from zeropull.gateway.state import GatewayState
from zeropull.gateway.upstream import UpstreamConnection

WRITE_JOINED_BYTES = 64 * 1024  # bodies above are handed to the socket in pieces, never copied
MAX_CONNECT_ATTEMPTS = 3

_OK_START = b"HTTP/1.1 200 OK\r\nx-amzn-RequestId: "


class Admitted(Protocol):
    """The invocation that a forwarding carries out."""

    body: RequestBody
    held: bool
    received_s: float
    request: Request
    streamed: bool

    def container_lines(self) -> bytes: ...
    def cold_start_line(self) -> bytes: ...
    def wait_first(self) -> None:
        """It has no slot any more: first in the queue. `begin` follows, or nothing."""

    def ended(self) -> None:
        """Nothing follows: let go of the body, and of the forwarding."""


class Stage(Enum):
    CONNECTING = "connecting"
    SENT = "sent"
    QUEUED = "queued"  # again
    DONE = "done"


CONNECTING, SENT, QUEUED, DONE = Stage


class Forwarding:
    """The exchange of its upstream connection.

    Times in seconds are monotonic, but for those that the meters get. Every path ends in exactly
    one of `_finish` and `on_client_gone`.
    """

    __slots__ = (
        "_admitted",
        "_answer",
        "_attempts",
        "_client",
        "_group",
        "_sent_s",
        "_state",
        "_streamed",
        "_target",
        "_tried",
        "_upstream",
        "stage",
    )

    def __init__(
        self, state: GatewayState, client: ClientConnection, admitted: Admitted, group: Group
    ) -> None:
        self._state = state
        self._client = client
        self._admitted = admitted
        self._group = group
        self._streamed = admitted.streamed
        self._target: Target | None = None
        self._tried: tuple[Target, ...] = ()
        self._attempts = 0
        self._upstream: UpstreamConnection | None = None
        self._sent_s = 0.0
        self._answer: ModelAnswer | None = None
        self.stage = QUEUED

    # To the container

    def begin(self, target: Target, now_s: float) -> None:
        """Take a slot of this copy; the request goes out on a kept or a new connection."""
        state = self._state
        self._target = target
        target.meter.begin(state.clock())
        self._sent_s = now_s
        state.deadlines.watch(self, self._streamed, state.now_s)
        idle = target.idle
        if idle and idle[-1].idle_since_s > now_s - state.settings.upstream_idle_s:
            self._send(target, idle.pop())
        else:
            self.stage = CONNECTING
            target.connecting[self] = None
            state.pools.connect(self, target)

    def connected(self, connection: UpstreamConnection) -> bool:
        if self.stage is not CONNECTING:
            return False
        target = self._target
        assert target is not None
        target.connecting.pop(self, None)
        self._send(target, connection)
        return True

    def connect_failed(self, *, refused: bool) -> None:
        """Nothing was sent: another copy may take it, or the same one if it was only slow."""
        if self.stage is not CONNECTING:
            return
        state, target, group = self._state, self._target, self._group
        assert target is not None
        state.pools.eject(target, state.monotonic())
        self._tried = (*self._tried, target)
        self._attempts += 1
        untried = any(copy not in self._tried for copy in group.targets)
        if self._attempts >= MAX_CONNECT_ATTEMPTS or (refused and not untried):
            self._model_failed(0, refusals.PROCESS_EXITED)
            return
        if not untried:
            state.pools.connect(self, target)
            return
        self._leave(target)
        self.stage = QUEUED
        now_s = state.monotonic()
        other = group.choose(now_s, self._tried)
        if other is not None:
            self.begin(other, now_s)
        else:
            self._admitted.wait_first()

    def _leave(self, target: Target) -> None:
        """Give the slot back, without a result."""
        target.connecting.pop(self, None)
        target.meter.end(self._state.clock())
        self._state.deadlines.unwatch(self, self._streamed)
        self._target = None

    def _send(self, target: Target, connection: UpstreamConnection) -> None:
        self.stage = SENT
        self._upstream = connection
        connection.exchange = self
        body = self._admitted.body
        pieces = [target.request_start, self._admitted.container_lines(), *body.take()]
        if body.size_bytes <= WRITE_JOINED_BYTES:
            connection.transport.write(b"".join(pieces))
        else:
            connection.transport.writelines(pieces)

    # The upstream connection calls these.

    def on_response_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        if status == 204:  # has no body, whatever length it names (RFC 9110, section 15.3.5)
            headers = [pair for pair in headers if pair[0] != b"content-length"]
        lines = AnswerLines(headers)
        if lines.session_id or lines.closed_session_id:
            self._note_session(lines)
        self._begin_answer(status, lines)

    def on_known_head(self, head: KnownAnswerHead) -> None:
        self._begin_answer(200, head.lines)

    def _note_session(self, lines: AnswerLines) -> None:
        assert self._target is not None
        if lines.session_id:
            self._group.sessions.open(lines.session_id, self._target.copy_id)
        if lines.closed_session_id:
            self._group.sessions.close(lines.closed_session_id)

    def _begin_answer(self, status: int, lines: AnswerLines) -> None:
        http10 = self._admitted.request.http10
        self._answer = ModelAnswer(status, lines, events=self._streamed, http10=http10)

    def on_response_body(self, data: bytes) -> None:
        assert self._answer is not None
        self._answer.add(data)

    def on_response_flush(self) -> None:
        answer = self._answer
        if answer is not None and answer.is_success and not answer.is_held:
            self._hand_on(answer, last=False)

    def on_response_complete(self, reusable: bool) -> None:
        upstream, self._upstream = self._upstream, None
        target, answer = self._target, self._answer
        assert target is not None and answer is not None and upstream is not None
        if reusable and not target.gone:
            self._state.pools.keep(target, upstream, self._state.now_s)
        else:
            upstream.abandon()
        if answer.is_success:
            self._hand_on(answer, last=True)
            self._finish(target, SERVED, model_status=answer.status)
        else:
            self._model_failed(answer.status, answer.text())

    def on_whole_response(self, head: KnownAnswerHead, body: bytes) -> None:
        if self._streamed:
            self.on_known_head(head)
            if body:
                self.on_response_body(body)
            self.on_response_complete(True)
            return
        upstream, self._upstream = self._upstream, None
        target = self._target
        assert target is not None and upstream is not None
        if target.gone:
            upstream.abandon()
        else:
            self._state.pools.keep(target, upstream, self._state.now_s)
        self._client.transport.write(
            b"".join((self._answer_start(), head.lines.as_it_is, b"\r\n", body))
        )
        self._finish(target, SERVED, model_status=200)

    def on_upstream_lost(self, malformed: bool) -> None:
        self._upstream = None
        self._model_failed(0, refusals.MALFORMED if malformed else refusals.PROCESS_EXITED)

    def on_upstream_writable(self) -> None:
        """The whole body was handed over at once; nothing waits for this."""

    def _hand_on(self, answer: ModelAnswer, *, last: bool) -> None:
        start = b"" if answer.started else self._answer_start()
        if data := answer.take(start, last=last):
            self._client.write(data)

    def _answer_start(self) -> bytes:
        admitted, answer = self._admitted, self._answer
        start = b"".join(
            (_OK_START, self._state.next_request_id(), b"\r\n", self._group.variant_header)
        )
        if admitted.held:
            start += admitted.cold_start_line()
        if (
            self._state.draining
            or not admitted.request.keep_alive
            or (answer is not None and answer.ends_with_connection)
        ):
            self._client.closing = True
            start += b"Connection: close\r\n"
        return start

    # The client and the clock call these.

    def on_client_gone(self) -> None:
        """The container is told by a closed connection."""
        if self.stage is DONE:
            return
        self.stage = DONE
        if self._target is not None:
            self._let_go(self._target)
            self._leave(self._target)
        self._admitted.ended()
        self._state.counters.count_cancelled(self._group)
        self._group.serve_waiting(self._state.monotonic())

    def on_client_writable(self, writable: bool) -> None:
        if self._upstream is None:
            return
        if writable:
            self._upstream.transport.resume_reading()
        else:
            self._upstream.transport.pause_reading()

    def time_out(self) -> None:
        text = refusals.timed_out_text(self._group.container)
        self._model_failed(0, text, timed_out=True)

    def end_at_former_address(self) -> None:
        """From an address that its copy had before, no answer comes any more."""
        upstream, target = self._upstream, self._target
        if upstream is not None and target is not None and upstream.pool is not target.idle:
            upstream.transport.abort()

    # The ends

    def _model_failed(self, status: int, text: bytes, *, timed_out: bool = False) -> None:
        group, target, answer = self._group, self._target, self._answer
        assert target is not None
        if answer is not None and answer.started:
            self._finish(target, Result(200, self._break_off(answer, timed_out)))
            return
        self._answer = None
        refusal = refusals.model_error(
            status=status,
            original=text,
            container=group.container,
            endpoint=group.endpoint,
            account=group.account,
            region=self._state.table.region,
        )
        self._client.refuse(self._admitted.request, refusal, self._admitted.cold_start_line())
        self._finish(target, Result(refusal.status, refusal.code), model_status=status)

    def _break_off(self, answer: ModelAnswer, timed_out: bool) -> str:
        """The head said 200 already: an event says what happened, or the connection breaks."""
        end = answer.broken_off(timed_out=timed_out)
        if end is not None:
            self._client.write(end)
            return "ModelStreamError"
        self._client.transport.abort()
        return "StreamBroken"

    def _finish(self, target: Target, result: Result, *, model_status: int = 0) -> None:
        state, group = self._state, self._group
        at_s, now_s = state.clock(), state.monotonic()
        self.stage = DONE
        if self._upstream is not None or target.connecting:
            self._let_go(target)
        state.deadlines.unwatch(self, self._streamed)
        admitted = self._admitted
        admitted.ended()
        model_s, whole_s = now_s - self._sent_s, now_s - admitted.received_s
        target.meter.finish(at_s, model_status, model_s, whole_s - model_s)
        if result.code == "":
            target.failures = 0
            if not target.first_response_s:
                target.first_response_s = at_s
        group.latency.observe(whole_s)
        group.results[result] += 1
        if group.waiting:
            group.serve_waiting(now_s)
        answer = self._answer
        self._client.finished(answer is None or not answer.ends_with_connection)

    def _let_go(self, target: Target) -> None:
        """Of a connection that is not needed any more."""
        target.connecting.pop(self, None)
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abandon()
