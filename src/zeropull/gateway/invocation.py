"""One invocation, from its head to its last byte.

InvokeEndpoint and InvokeEndpointWithResponseStream of the SageMaker Runtime API. There is no task
and no future per request: the client's and the container's connection call it as things happen.
Every path ends in exactly one of `_finish`, `_refuse` and `on_client_gone`.
"""

from __future__ import annotations

import hashlib
from enum import Enum
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from zeropull.awsprotocol import sigv4
from zeropull.awsprotocol.eventstream import CONTENT_TYPE as EVENT_STREAM
from zeropull.awsprotocol.eventstream import encode_exception, encode_payload_part
from zeropull.awsprotocol.faults import SignatureError
from zeropull.gateway import answers
from zeropull.gateway.answers import Refusal
from zeropull.gateway.connection import ClientConnection, Request
from zeropull.gateway.routing import Group, Target

if TYPE_CHECKING:
    from zeropull.gateway.gateway import Gateway
    from zeropull.gateway.upstream import UpstreamConnection

UNARY, STREAMED = b"/invocations", b"/invocations-response-stream"
HELD_ANSWER_BYTES = 64 * 1024  # a failure up to here still becomes a ModelError
WRITE_JOINED_BYTES = 64 * 1024  # bodies above are handed to the socket in pieces, never copied
MAX_CONNECT_ATTEMPTS = 3

_PREFIX = b"x-amzn-sagemaker-"
_TARGET_VARIANT = b"x-amzn-sagemaker-target-variant"
_COMPONENT = b"x-amzn-sagemaker-inference-component"
_STREAM_ACCEPT = b"x-amzn-sagemaker-accept"
# What of the container's headers reaches the caller, and under which name.
_ANSWER_HEADERS = {
    b"x-amzn-sagemaker-custom-attributes": b"X-Amzn-SageMaker-Custom-Attributes",
    b"x-amzn-sagemaker-session-id": b"X-Amzn-SageMaker-New-Session-Id",
    b"x-amzn-sagemaker-new-session-id": b"X-Amzn-SageMaker-New-Session-Id",
    b"x-amzn-sagemaker-closed-session-id": b"X-Amzn-SageMaker-Closed-Session-Id",
}


class State(Enum):
    READING = "reading"  # the body is coming in
    WAITING = "waiting"  # for a slot
    CONNECTING = "connecting"
    SENT = "sent"
    ANSWERING = "answering"  # bytes of the answer have gone to the client
    DONE = "done"


class Invocation:
    """Handler of one request under /endpoints/; also the exchange of its upstream connection."""

    __slots__ = (
        "_accept",
        "_answer",
        "_answer_bytes",
        "_answer_headers",
        "_attempts",
        "_body",
        "_body_bytes",
        "_chunked",
        "_client",
        "_component",
        "_forward",
        "_gateway",
        "_hash",
        "_model_status",
        "_request",
        "_sent_s",
        "_streamed",
        "_target",
        "_tried",
        "_upstream",
        "_variant",
        "group",
        "held",
        "queued_s",
        "state",
        "waited_s",
    )

    def __init__(self, gateway: Gateway, client: ClientConnection, request: Request) -> None:
        self._gateway = gateway
        self._client = client
        self._request = request
        self.state = State.READING
        self.group: Group | None = None
        self.held = False  # there was no copy at all when it came
        self.queued_s = 0.0
        self.waited_s = 0.0
        self._streamed = False
        self._variant: str | None = None
        self._component: str | None = None
        self._forward: list[bytes] = []
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._hash: hashlib._Hash | None = None
        self._target: Target | None = None
        self._tried: tuple[Target, ...] = ()
        self._attempts = 0
        self._upstream: UpstreamConnection | None = None
        self._sent_s = 0.0
        self._model_status = 0
        self._answer: list[bytes] = []  # pieces that have not gone to the client
        self._answer_bytes = 0
        self._answer_headers = b""
        self._chunked = False

    # ------------------------------------------------------------------ the request comes in

    def start(self) -> None:
        forward = self._forward
        length, expects = 0, False
        for name, value in self._request.headers:
            lower = name.lower()
            if lower in (b"content-type", b"accept"):
                forward.append(b"%b: %b\r\n" % (name, value))
            elif lower.startswith(_PREFIX):
                if lower == _TARGET_VARIANT:
                    self._variant = value.decode("latin-1")
                elif lower == _COMPONENT:
                    self._component = value.decode("latin-1")
                elif lower == _STREAM_ACCEPT:
                    forward.append(b"Accept: %b\r\n" % value)
                    continue
                forward.append(b"%b: %b\r\n" % (name, value))
            elif lower == b"content-length":
                length = int(value)
            elif lower == b"expect":
                expects = value.lower() == b"100-continue"
        if length > self._gateway.settings.max_body_bytes:
            self._refuse(answers.too_large(self._gateway.settings.max_body_bytes))
        elif not self._gateway.has_room_for(length):
            self._refuse(answers.service_unavailable("Too many request bodies are in memory."))
        elif expects and not self._request.complete:
            self._client.continue_body()

    def on_chunk(self, data: bytes) -> None:
        if self.state is not State.READING:
            return
        self._body.append(data)
        self._body_bytes += len(data)
        self._gateway.body_bytes += len(data)
        if self._body_bytes > self._gateway.settings.max_body_bytes:
            self._refuse(answers.too_large(self._gateway.settings.max_body_bytes))
        elif not self._gateway.has_room_for(0):
            # Many bodies that were let in while there was room, or that came in chunks.
            self._refuse(answers.service_unavailable("Too many request bodies are in memory."))
        elif self._gateway.signed:
            if self._hash is None:
                self._hash = hashlib.sha256(data)
            else:
                self._hash.update(data)

    def on_complete(self) -> None:
        if self.state is not State.READING:
            return
        try:
            self.group = group = self._authorised_group()
        except Refusal as refusal:
            self._refuse(refusal)
            return
        now_s = self._gateway.clock()
        target = None if group.waiting else group.choose(now_s)
        if target is not None:
            self.begin(target, now_s)
        else:
            self._wait(group, now_s)

    def _authorised_group(self) -> Group:
        request, gateway = self._request, self._gateway
        account: str | None = None
        if gateway.signed:
            digest = self._hash.hexdigest() if self._hash else sigv4.EMPTY_SHA256
            try:
                key = sigv4.verify(
                    request.method.decode("latin-1"),
                    request.path,
                    request.query,
                    request.headers,
                    digest,
                    gateway.table.keys,
                    region=gateway.table.region,
                    service="sagemaker",
                    now_s=request.received_s,
                )
            except SignatureError as error:
                raise Refusal(error.status, error.code, str(error)) from error
            account = key.account
        parts = request.path.split(b"/")  # "", "endpoints", name, operation
        operation = parts[3] if len(parts) == 4 else b""
        self._streamed = operation == STREAMED[1:]
        if not self._streamed and operation != UNARY[1:]:
            raise Refusal(
                404,
                "UnknownOperationException",
                f"{request.path.decode('latin-1')} is no operation of this service.",
            )
        if request.method != b"POST":
            raise Refusal(405, "UnknownOperationException", "Invocations are POST requests.")
        raw_name = parts[2]
        if b"%" in raw_name:
            raw_name = unquote_to_bytes(raw_name)
        name = raw_name.decode("utf-8", "replace")
        endpoint = gateway.table.find(name, account)
        if endpoint is None:
            raise answers.endpoint_not_found(name, account or gateway.account)
        return endpoint.group(self._variant, self._component)

    # ------------------------------------------------------------------ waiting for a slot

    def _wait(self, group: Group, now_s: float) -> None:
        if not group.targets:
            if not group.hold:
                group.meter.refuse_no_capacity(now_s)
                self._refuse(
                    answers.component_without_copies()
                    if group.component
                    else answers.service_unavailable(
                        f"Variant {group.variant} of endpoint {group.endpoint} has no healthy copy."
                    )
                )
                return
            self.held = True
            if not group.waiting:
                self._gateway.first_held()
        if len(group.waiting) >= group.queue_limit:
            self._refuse(
                answers.service_unavailable(
                    f"{group.queue_limit} requests already wait for a slot of {group.name}, which "
                    "is its limit."
                )
            )
            return
        self._enqueue(group, now_s)

    def _enqueue(self, group: Group, now_s: float) -> None:
        self.state = State.WAITING
        self.queued_s = now_s
        group.meter.begin(now_s)
        group.waiting[self] = None

    def give_up_waiting(self, now_s: float) -> None:
        """It has waited for its whole time, or its group is gone."""
        refusal = (
            answers.still_starting(now_s - self.queued_s)
            if self.held
            else answers.service_unavailable(
                f"No slot became free within {now_s - self.queued_s:.0f} s."
            )
        )
        if self.held and self.group is not None:
            self.group.meter.refuse_no_capacity(now_s)
        self._refuse(refusal)

    def endpoint_gone(self) -> None:
        """The endpoint was deleted while it waited."""
        assert self.group is not None
        self._refuse(answers.endpoint_not_found(self.group.endpoint, self.group.account))

    def _leave_queue(self, now_s: float) -> None:
        group = self.group
        assert group is not None
        del group.waiting[self]
        group.meter.end(now_s)
        self.waited_s += now_s - self.queued_s

    # ------------------------------------------------------------------ to the container

    def begin(self, target: Target, now_s: float) -> None:
        """Take a slot of this copy; the request goes out on a kept or a new connection."""
        if self.state is State.WAITING:
            self._leave_queue(now_s)
        self._target = target
        target.meter.begin(now_s)
        self._sent_s = now_s
        self._gateway.watch(self, self._streamed)
        oldest_s = now_s - self._gateway.settings.upstream_idle_s
        if target.idle and target.idle[-1].idle_since_s > oldest_s:
            self._send(target.idle.pop())
        else:
            self.state = State.CONNECTING
            target.connecting[self] = None
            self._gateway.connect(self, target)

    def connected(self, upstream: UpstreamConnection) -> bool:
        """A connection is there, new or freed by another; False when it is not needed any more."""
        if self.state is not State.CONNECTING:
            return False
        assert self._target is not None
        self._target.connecting.pop(self, None)
        self._send(upstream)
        return True

    def connect_failed(self, now_s: float, *, refused: bool) -> None:
        """Nothing was sent: another copy may take it, or the same one if it was only slow."""
        if self.state is not State.CONNECTING:
            return
        target, group = self._target, self.group
        assert target is not None and group is not None
        self._gateway.eject(target, now_s)
        self._tried = (*self._tried, target)
        self._attempts += 1
        untried = any(copy not in self._tried for copy in group.targets)
        if self._attempts >= MAX_CONNECT_ATTEMPTS or (refused and not untried):
            self._model_failed(0, answers.PROCESS_EXITED)
            return
        if not untried:
            self._gateway.connect(self, target)
            return
        target.connecting.pop(self, None)
        target.meter.end(now_s)
        self._gateway.unwatch(self, self._streamed)
        self._target = None
        other = group.choose(now_s, self._tried)
        if other is not None:
            self.begin(other, now_s)
            return
        # The others are busy: first in the queue, where it would have been.
        self._enqueue(group, now_s)
        group.waiting.move_to_end(self, last=False)

    def _send(self, upstream: UpstreamConnection) -> None:
        target = self._target
        assert target is not None
        self.state = State.SENT
        self._upstream = upstream
        upstream.exchange = self
        head = b"%b%bContent-Length: %d\r\n\r\n" % (
            target.request_start,
            b"".join(self._forward),
            self._body_bytes,
        )
        body, self._body = self._body, []
        if self._body_bytes <= WRITE_JOINED_BYTES:
            upstream.transport.write(b"".join((head, *body)))
        else:
            upstream.transport.writelines([head, *body])

    # ------------------------------------------------------------------ the answer

    def on_response_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._model_status = status
        content_type, length, lines = b"application/octet-stream", b"", []
        for name, value in headers:
            if name == b"content-type":
                content_type = value
            elif name == b"content-length":
                length = value
            elif name in _ANSWER_HEADERS:
                lines.append(b"%b: %b\r\n" % (_ANSWER_HEADERS[name], value))
        if not 200 <= status < 300:
            return
        if self._streamed:
            lines.append(b"Content-Type: %b\r\n" % EVENT_STREAM.encode())
            lines.append(b"X-Amzn-SageMaker-Content-Type: %b\r\n" % content_type)
            length = b""
        else:
            lines.append(b"Content-Type: %b\r\n" % content_type)
        if length:
            lines.append(b"Content-Length: %b\r\n" % length)
        else:
            self._chunked = True
        self._answer_headers = b"".join(lines)

    def on_response_body(self, data: bytes) -> None:
        if not 200 <= self._model_status < 300:
            if self._answer_bytes < answers.MAX_ORIGINAL_MESSAGE:
                self._answer.append(data)
                self._answer_bytes += len(data)
            return
        self._answer.append(data)
        self._answer_bytes += len(data)

    def on_response_flush(self) -> None:
        if not 200 <= self._model_status < 300 or self.state is State.DONE:
            return
        if self._streamed or self._answer_bytes > HELD_ANSWER_BYTES:
            self._hand_on(last=False)

    def on_response_complete(self, reusable: bool) -> None:
        upstream, self._upstream = self._upstream, None
        target, group = self._target, self.group
        assert target is not None and group is not None and upstream is not None
        if reusable and not target.gone:
            self._gateway.keep(target, upstream)
        else:
            upstream.abandon()
        if 200 <= self._model_status < 300:
            self._hand_on(last=True)
            self._finish("")
        else:
            self._model_failed(self._model_status, b"".join(self._answer))

    def on_upstream_lost(self, malformed: bool) -> None:
        self._upstream = None
        self._model_failed(0, answers.MALFORMED if malformed else answers.PROCESS_EXITED)

    def on_upstream_writable(self) -> None:
        """The whole body was handed over at once; nothing waits for this."""

    def on_client_writable(self, writable: bool) -> None:
        if self._upstream is None:
            return
        if writable:
            self._upstream.transport.resume_reading()
        else:
            self._upstream.transport.pause_reading()

    def _head(self, length: int | None) -> bytes:
        """The answer's head; `length` None = it comes in chunks, or ends with the connection."""
        group = self.group
        assert group is not None
        framing = b""
        if self._chunked:
            if length is not None:
                framing = b"Content-Length: %d\r\n" % length
            elif not self._request.http10:
                framing = b"Transfer-Encoding: chunked\r\n"
        close = not self._keep_alive
        return b"HTTP/1.1 200 OK\r\nx-amzn-RequestId: %b\r\n%b%b%b%b%b\r\n" % (
            self._gateway.next_request_id(),
            group.variant_header,
            self._answer_headers,
            framing,
            b"x-zeropull-cold-start: %.3f\r\n" % self.waited_s if self.held else b"",
            b"Connection: close\r\n" if close else b"",
        )

    @property
    def _keep_alive(self) -> bool:
        request = self._request
        return request.keep_alive and not (request.http10 and self._chunked)

    def _hand_on(self, *, last: bool) -> None:
        pieces, self._answer = self._answer, []
        parts: list[bytes] = []
        if self.state is not State.ANSWERING:
            self.state = State.ANSWERING
            whole = last and not self._streamed
            parts.append(self._head(self._answer_bytes if whole else None))
            if whole:  # the usual case: head and body in one piece
                parts += pieces
                self._client.write(b"".join(parts))
                return
        if pieces:
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if self._streamed:
                data = encode_payload_part(data)
            parts += self._framed(data)
        if last and self._chunked and not self._request.http10:
            parts.append(b"0\r\n\r\n")
        if parts:
            self._client.write(b"".join(parts))
        self._answer_bytes = HELD_ANSWER_BYTES + 1  # what follows is handed on as it comes

    def _framed(self, data: bytes) -> tuple[bytes, ...]:
        if self._chunked and not self._request.http10:
            return b"%x\r\n" % len(data), data, b"\r\n"
        return (data,)

    # ------------------------------------------------------------------ the ends

    def time_out(self) -> None:
        """The container took longer than an invocation may take."""
        assert self.group is not None
        self._model_failed(0, answers.timed_out_text(self.group.container), timed_out=True)

    def _model_failed(self, status: int, text: bytes, *, timed_out: bool = False) -> None:
        group = self.group
        assert group is not None
        self._model_status = status
        if self.state is State.ANSWERING:
            self._break_off(timed_out)
            return
        refusal = answers.model_error(
            status=status,
            original=text,
            container=group.container,
            endpoint=group.endpoint,
            account=group.account,
            region=self._gateway.table.region,
        )
        self._answer_refusal(refusal)
        self._finish(refusal.code, refusal.status)

    def _break_off(self, timed_out: bool) -> None:
        """The head said 200 already: an event says what happened, or the connection breaks."""
        if self._streamed:
            members = {
                "Message": "The invocation took longer than it may."
                if timed_out
                else "The container broke the stream off.",
                "ErrorCode": "ModelInvocationTimeExceeded" if timed_out else "StreamBroken",
            }
            parts = self._framed(encode_exception("ModelStreamError", members))
            end = b"" if self._request.http10 else b"0\r\n\r\n"
            self._client.write(b"".join((*parts, end)))
            self._finish("ModelStreamError", 200)
        else:
            self._client.transport.abort()
            self._finish("StreamBroken", 200)

    def _finish(self, code: str, status: int = 200) -> None:
        gateway, target, group = self._gateway, self._target, self.group
        assert target is not None and group is not None
        now_s = gateway.clock()
        self.state = State.DONE
        self._release()
        gateway.unwatch(self, self._streamed)
        model_s = now_s - self._sent_s
        received_s = self._request.received_s
        target.meter.finish(
            now_s, self._model_status, model_s, max(0.0, now_s - received_s - model_s)
        )
        if code == "":
            target.failures = 0
            if not target.first_response_s:
                target.first_response_s = now_s
        group.latency.observe(now_s - received_s)
        result = (status, code)
        group.results[result] = group.results.get(result, 0) + 1
        if group.waiting:
            gateway.slot_free(group, now_s)
        self._client.finished(self._keep_alive)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer without any container's doing."""
        gateway, group = self._gateway, self.group
        if self.state is State.WAITING:
            self._leave_queue(gateway.clock())
        self.state = State.DONE
        self._release()
        gateway.count_refusal(group, refusal)
        self._answer_refusal(refusal)
        self._client.finished(self._keep_alive)

    def _answer_refusal(self, refusal: Refusal) -> None:
        self._chunked = False
        headers = answers.error_headers(refusal.code)
        if self.held:
            headers += b"x-zeropull-cold-start: %.3f\r\n" % self.waited_s
        self._client.write(
            answers.response(
                refusal.status,
                refusal.body(),
                request_id=self._gateway.next_request_id(),
                headers=headers,
                close=not (self._request.keep_alive and self._request.complete),
            )
        )

    def on_client_gone(self) -> None:
        """Nobody waits for the answer any more: the container is told by a closed connection."""
        if self.state is State.DONE:
            return
        gateway, target, group = self._gateway, self._target, self.group
        now_s = gateway.clock()
        if self.state is State.WAITING:
            self._leave_queue(now_s)
        elif target is not None:
            target.meter.end(now_s)
            gateway.unwatch(self, self._streamed)
        self.state = State.DONE
        self._release()
        gateway.count_cancelled(group)
        if group is not None and group.waiting:
            gateway.slot_free(group, now_s)

    def _release(self) -> None:
        self._body = []
        self._answer = []
        self._gateway.body_bytes -= self._body_bytes
        self._body_bytes = 0
        if self._target is not None:
            self._target.connecting.pop(self, None)
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abandon()
