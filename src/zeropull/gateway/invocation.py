"""One invocation, from its head to its last byte.

InvokeEndpoint and InvokeEndpointWithResponseStream of the SageMaker Runtime API. There is no task
and no future per request: the client's and the container's connection call it as things happen.
Every path ends in exactly one of `_finish`, `_refuse` and `on_client_gone`.
"""

from __future__ import annotations

import hashlib
from enum import Enum
from typing import TYPE_CHECKING

from zeropull.awsprotocol.sigv4 import EMPTY_SHA256
from zeropull.gateway import refusals
from zeropull.gateway.admission import admit, admit_signed, is_settled
from zeropull.gateway.connection import ClientConnection
from zeropull.gateway.invocation_head import InvocationHead
from zeropull.gateway.model_answer import AnswerLines, ModelAnswer
from zeropull.gateway.refusals import Refusal
from zeropull.gateway.request import Request
from zeropull.gateway.routing import Group, Target

if TYPE_CHECKING:
    from zeropull.gateway.known_answer import KnownAnswerHead
    from zeropull.gateway.server import Gateway
    from zeropull.gateway.upstream import UpstreamConnection
    from zeropull.gateway.whole_request import KnownHead

WRITE_JOINED_BYTES = 64 * 1024  # bodies above are handed to the socket in pieces, never copied
MAX_CONNECT_ATTEMPTS = 3

_OK_START = b"HTTP/1.1 200 OK\r\nx-amzn-RequestId: "


class State(Enum):
    READING = "reading"  # the body is coming in
    WAITING = "waiting"  # for a slot
    CONNECTING = "connecting"
    SENT = "sent"
    DONE = "done"


# Every access of a member through its class costs a look-up in Python 3.11.
READING, WAITING, CONNECTING, SENT, DONE = State


class Invocation:
    """Handler of one request under /endpoints/; also the exchange of its upstream connection.

    Times in seconds are monotonic, but for those that the meters get.
    """

    __slots__ = (
        "_answer",
        "_attempts",
        "_body",
        "_body_bytes",
        "_client",
        "_gateway",
        "_hash",
        "_head",
        "_lines",
        "_received_s",
        "_request",
        "_sent_s",
        "_streamed",
        "_target",
        "_tried",
        "_upstream",
        "group",
        "held",
        "queued_s",
        "state",
        "waited_s",
    )

    def __init__(
        self, gateway: Gateway, client: ClientConnection, request: Request, received_s: float
    ) -> None:
        self._gateway = gateway
        self._client = client
        self._request = request
        self._received_s = received_s
        self._head: InvocationHead
        self._lines: bytes | None = None  # that the container gets, where they are known already
        self.state = READING
        self.group: Group | None = None
        self.held = False  # there was no copy at all when it came
        self.queued_s = 0.0
        self.waited_s = 0.0
        self._streamed = False
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._hash: hashlib._Hash | None = None
        self._target: Target | None = None
        self._tried: tuple[Target, ...] = ()
        self._attempts = 0
        self._upstream: UpstreamConnection | None = None
        self._sent_s = 0.0
        self._answer: ModelAnswer | None = None

    # ------------------------------------------------------------------ the request comes in

    def start(self) -> None:
        gateway = self._gateway
        settings = gateway.settings
        request = self._request
        self._head = head = InvocationHead(request.headers)
        if (
            head.length_bytes > settings.max_body_bytes
            or gateway.body_bytes + head.length_bytes > settings.max_buffered_bytes
        ):
            self._too_much(head.length_bytes)
        elif head.expects_continue and not request.complete:
            self._client.continue_body()

    def start_whole(self, known: KnownHead, body: bytes, signature: bytes) -> None:
        """As `start`, `on_chunk` and `on_complete`, for a request whose head was known."""
        gateway, length = self._gateway, len(body)
        settings = gateway.settings
        if (
            length > settings.max_body_bytes
            or gateway.body_bytes + length > settings.max_buffered_bytes
        ):
            self._too_much(length)
            return
        self._head = known.head
        self._lines = known.lines
        self._body.append(body)
        self._body_bytes = length
        gateway.body_bytes += length
        if known.signed is not None:
            try:
                group, self._streamed = admit_signed(
                    gateway, known, known.signed, signature, hashlib.sha256(body).hexdigest()
                )
            except Refusal as refusal:
                self._refuse(refusal)
                return
            self._take_slot(group)
        elif known.group is not None:
            self._streamed = known.streamed
            self._take_slot(known.group)
            return
        else:
            self.on_complete()
        if known.group is None and self.group is not None and is_settled(known.head, self.group):
            known.group, known.streamed = self.group, self._streamed

    def _too_much(self, length_bytes: int) -> None:
        limit_bytes = self._gateway.settings.max_body_bytes
        if length_bytes > limit_bytes:
            self._refuse(refusals.too_large(limit_bytes))
        else:
            self._refuse(refusals.service_unavailable("Too many request bodies are in memory."))

    def on_chunk(self, data: bytes) -> None:
        if self.state is not READING:
            return
        gateway, length = self._gateway, len(data)
        settings = gateway.settings
        self._body.append(data)
        self._body_bytes += length
        gateway.body_bytes += length
        if self._body_bytes > settings.max_body_bytes:
            self._refuse(refusals.too_large(settings.max_body_bytes))
        elif gateway.body_bytes > settings.max_buffered_bytes:
            # Many bodies that were let in while there was room, or that came in chunks.
            self._refuse(refusals.service_unavailable("Too many request bodies are in memory."))
        elif gateway.signed:
            if self._hash is None:
                self._hash = hashlib.sha256(data)
            else:
                self._hash.update(data)

    def on_complete(self) -> None:
        if self.state is not READING:
            return
        body_sha256 = self._hash.hexdigest() if self._hash else EMPTY_SHA256
        try:
            group, self._streamed = admit(
                self._gateway, self._request, self._head, body_sha256, self._received_s
            )
        except Refusal as refusal:
            self._refuse(refusal)
            return
        self._take_slot(group)

    def _take_slot(self, group: Group) -> None:
        self.group = group
        now_s = self._gateway.monotonic()
        target = None if group.waiting else group.choose(now_s)
        if target is not None:
            self.begin(target, now_s)
        else:
            self._wait(group)

    # ------------------------------------------------------------------ waiting for a slot

    def _wait(self, group: Group) -> None:
        if not group.targets:
            if not group.hold:
                group.meter.refuse_no_capacity(self._gateway.clock())
                self._refuse(
                    refusals.component_without_copies()
                    if group.component
                    else refusals.no_healthy_copy(group.variant, group.endpoint)
                )
                return
            self.held = True
            if not group.waiting:
                self._gateway.first_held()
        if len(group.waiting) >= group.queue_limit:
            self._refuse(refusals.queue_full(group.name, group.queue_limit))
            return
        self._enqueue(group)

    def _enqueue(self, group: Group) -> None:
        self.state = WAITING
        self.queued_s = self._gateway.monotonic()
        group.meter.begin(self._gateway.clock())
        group.waiting[self] = None

    def give_up_waiting(self) -> None:
        """It has waited for its whole time."""
        waited_s = self._gateway.monotonic() - self.queued_s
        refusal = (
            refusals.still_starting(waited_s)
            if self.held
            else refusals.service_unavailable(f"No slot became free within {waited_s:.0f} s.")
        )
        if self.held and self.group is not None:
            self.group.meter.refuse_no_capacity(self._gateway.clock())
        self._refuse(refusal)

    def endpoint_gone(self) -> None:
        """The endpoint was deleted while it waited."""
        assert self.group is not None
        self._refuse(refusals.endpoint_not_found(self.group.endpoint, self.group.account))

    def _leave_queue(self) -> None:
        group = self.group
        assert group is not None
        del group.waiting[self]
        group.meter.end(self._gateway.clock())
        self.waited_s += self._gateway.monotonic() - self.queued_s

    # ------------------------------------------------------------------ to the container

    def begin(self, target: Target, now_s: float) -> None:
        """Take a slot of this copy; the request goes out on a kept or a new connection."""
        gateway = self._gateway
        if self.state is WAITING:
            self._leave_queue()
        self._target = target
        target.meter.begin(gateway.clock())
        self._sent_s = now_s
        gateway.watch(self, self._streamed)
        idle = target.idle
        if idle and idle[-1].idle_since_s > now_s - gateway.settings.upstream_idle_s:
            self._send(idle.pop())
        else:
            self.state = CONNECTING
            target.connecting[self] = None
            gateway.connect(self, target)

    def connected(self, upstream: UpstreamConnection) -> bool:
        """A connection is there, new or freed by another; False when it is not needed any more."""
        if self.state is not CONNECTING:
            return False
        assert self._target is not None
        self._target.connecting.pop(self, None)
        self._send(upstream)
        return True

    def connect_failed(self, *, refused: bool) -> None:
        """Nothing was sent: another copy may take it, or the same one if it was only slow."""
        if self.state is not CONNECTING:
            return
        gateway, target, group = self._gateway, self._target, self.group
        assert target is not None and group is not None
        gateway.eject(target)
        self._tried = (*self._tried, target)
        self._attempts += 1
        untried = any(copy not in self._tried for copy in group.targets)
        if self._attempts >= MAX_CONNECT_ATTEMPTS or (refused and not untried):
            self._model_failed(0, refusals.PROCESS_EXITED)
            return
        if not untried:
            gateway.connect(self, target)
            return
        target.connecting.pop(self, None)
        target.meter.end(gateway.clock())
        gateway.unwatch(self, self._streamed)
        self._target = None
        now_s = gateway.monotonic()
        other = group.choose(now_s, self._tried)
        if other is not None:
            self.begin(other, now_s)
            return
        # The others are busy: first in the queue, where it would have been.
        self._enqueue(group)
        group.waiting.move_to_end(self, last=False)

    def _send(self, upstream: UpstreamConnection) -> None:
        target = self._target
        assert target is not None
        self.state = SENT
        self._upstream = upstream
        upstream.exchange = self
        lines = self._lines or self._head.container_lines(self._body_bytes)
        pieces = [target.request_start, lines, *self._body]
        self._body = []
        if self._body_bytes <= WRITE_JOINED_BYTES:
            upstream.transport.write(b"".join(pieces))
        else:
            upstream.transport.writelines(pieces)

    # ------------------------------------------------------------------ the answer

    def on_response_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._begin_answer(status, AnswerLines(headers))

    def on_known_head(self, head: KnownAnswerHead) -> None:
        self._begin_answer(200, head.lines)

    def _begin_answer(self, status: int, lines: AnswerLines) -> None:
        self._answer = ModelAnswer(
            status, lines, events=self._streamed, http10=self._request.http10
        )

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
            self._gateway.keep(target, upstream)
        else:
            upstream.abandon()
        if answer.is_success:
            self._hand_on(answer, last=True)
            self._finish("", model_status=answer.status)
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
            self._gateway.keep(target, upstream)
        self._client.transport.write(
            b"".join((self._answer_start(), head.lines.as_it_is, b"\r\n", body))
        )
        self._finish("", model_status=200)

    def on_upstream_lost(self, malformed: bool) -> None:
        self._upstream = None
        self._model_failed(0, refusals.MALFORMED if malformed else refusals.PROCESS_EXITED)

    def end_at_former_address(self) -> None:
        """If the copy has another address since: from the one before, no answer comes any more."""
        upstream, target = self._upstream, self._target
        if upstream is not None and target is not None and upstream.pool is not target.idle:
            upstream.transport.abort()

    def on_upstream_writable(self) -> None:
        """The whole body was handed over at once; nothing waits for this."""

    def on_client_writable(self, writable: bool) -> None:
        if self._upstream is None:
            return
        if writable:
            self._upstream.transport.resume_reading()
        else:
            self._upstream.transport.pause_reading()

    def _hand_on(self, answer: ModelAnswer, *, last: bool) -> None:
        start = b"" if answer.started else self._answer_start()
        if data := answer.take(start, last=last):
            self._client.write(data)

    def _answer_start(self) -> bytes:
        assert self.group is not None
        start = b"".join(
            (_OK_START, self._gateway.next_request_id(), b"\r\n", self.group.variant_header)
        )
        if self.held:
            start += b"x-zeropull-cold-start: %.3f\r\n" % self.waited_s
        answer = self._answer
        if not self._request.keep_alive or (answer is not None and answer.ends_with_connection):
            start += b"Connection: close\r\n"
        return start

    # ------------------------------------------------------------------ the ends

    def time_out(self) -> None:
        """The container took longer than an invocation may take."""
        assert self.group is not None
        self._model_failed(0, refusals.timed_out_text(self.group.container), timed_out=True)

    def _model_failed(self, status: int, text: bytes, *, timed_out: bool = False) -> None:
        group, answer = self.group, self._answer
        assert group is not None
        if answer is not None and answer.started:
            self._break_off(answer, timed_out)
            return
        self._answer = None
        refusal = refusals.model_error(
            status=status,
            original=text,
            container=group.container,
            endpoint=group.endpoint,
            account=group.account,
            region=self._gateway.table.region,
        )
        self._answer_refusal(refusal)
        self._finish(refusal.code, refusal.status, model_status=status)

    def _break_off(self, answer: ModelAnswer, timed_out: bool) -> None:
        """The head said 200 already: an event says what happened, or the connection breaks."""
        end = answer.broken_off(timed_out=timed_out)
        if end is not None:
            self._client.write(end)
            self._finish("ModelStreamError")
        else:
            self._client.transport.abort()
            self._finish("StreamBroken")

    def _finish(self, code: str, status: int = 200, *, model_status: int = 0) -> None:
        gateway, target, group = self._gateway, self._target, self.group
        assert target is not None and group is not None
        at_s, now_s = gateway.clock(), gateway.monotonic()
        self.state = DONE
        self._release()
        gateway.unwatch(self, self._streamed)
        model_s, whole_s = now_s - self._sent_s, now_s - self._received_s
        target.meter.finish(at_s, model_status, model_s, whole_s - model_s)
        if code == "":
            target.failures = 0
            if not target.first_response_s:
                target.first_response_s = at_s
        group.latency.observe(whole_s)
        results, result = group.results, (status, code)
        results[result] = results.get(result, 0) + 1
        if group.waiting:
            gateway.slot_free(group)
        answer = self._answer
        self._client.finished(answer is None or not answer.ends_with_connection)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer without any container's doing."""
        if self.state is WAITING:
            self._leave_queue()
        self.state = DONE
        self._release()
        self._gateway.count_refusal(self.group, refusal)
        self._answer_refusal(refusal)
        self._client.finished()

    def _answer_refusal(self, refusal: Refusal) -> None:
        headers = refusals.error_headers(refusal.code)
        if self.held:
            headers += b"x-zeropull-cold-start: %.3f\r\n" % self.waited_s
        self._client.write(
            refusals.response(
                refusal.status,
                refusal.body(),
                request_id=self._gateway.next_request_id(),
                headers=headers,
                close=not (self._request.keep_alive and self._request.complete),
            )
        )

    def on_client_gone(self) -> None:
        """Nobody waits for the answer any more: the container is told by a closed connection."""
        if self.state is DONE:
            return
        gateway, target, group = self._gateway, self._target, self.group
        if self.state is WAITING:
            self._leave_queue()
        elif target is not None:
            target.meter.end(gateway.clock())
            gateway.unwatch(self, self._streamed)
        self.state = DONE
        self._release()
        gateway.count_cancelled(group)
        if group is not None and group.waiting:
            gateway.slot_free(group)

    def _release(self) -> None:
        self._body = []
        self._gateway.body_bytes -= self._body_bytes
        self._body_bytes = 0
        if self._target is not None and self._target.connecting:
            self._target.connecting.pop(self, None)
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abandon()
