"""A container's answer on its way to the caller: in one piece, in chunks, or as events."""

from __future__ import annotations

from zeropull.awsprotocol.event_stream import CONTENT_TYPE as EVENT_STREAM
from zeropull.awsprotocol.event_stream import encode_exception, encode_payload_part
from zeropull.gateway.refusals import MAX_ORIGINAL_MESSAGE

HELD_BYTES = 64 * 1024  # a failure up to here still becomes a ModelError

_EVENTS_LINE = b"Content-Type: %b\r\n" % EVENT_STREAM.encode()
_SESSION = b"x-amzn-sagemaker-session-id"
_NEW_SESSION = b"x-amzn-sagemaker-new-session-id"
_CLOSED_SESSION = b"x-amzn-sagemaker-closed-session-id"
# What of the container's headers reaches the caller, and under which name.
_HEADERS = {
    b"x-amzn-sagemaker-custom-attributes": b"X-Amzn-SageMaker-Custom-Attributes",
    _SESSION: b"X-Amzn-SageMaker-New-Session-Id",
    _NEW_SESSION: b"X-Amzn-SageMaker-New-Session-Id",
    _CLOSED_SESSION: b"X-Amzn-SageMaker-Closed-Session-Id",
}


class AnswerLines:
    """What of a container's headers the caller gets: as an answer's own, or with events in it.

    `length` is b"" where the head does not tell the length of the body. `session_id` and
    `closed_session_id` are those that the container has begun and ended with this answer, or b"".
    """

    __slots__ = ("as_events", "as_it_is", "closed_session_id", "length", "session_id")

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        named, lines = dict(headers), b""
        self.session_id = self.closed_session_id = b""
        if not _HEADERS.keys().isdisjoint(named):
            # What follows the ID is when it expires.
            begun = named.get(_NEW_SESSION) or named.get(_SESSION, b"")
            self.session_id = begun.partition(b";")[0].strip()
            self.closed_session_id = named.get(_CLOSED_SESSION, b"").strip()
            for name, value in headers:
                if name in _HEADERS:
                    lines += b"%b: %b\r\n" % (_HEADERS[name], value)
        content_type = named.get(b"content-type", b"application/octet-stream")
        self.length = named.get(b"content-length", b"")
        self.as_events = b"%b%bX-Amzn-SageMaker-Content-Type: %b\r\n" % (
            lines,
            _EVENTS_LINE,
            content_type,
        )
        self.as_it_is = b"%bContent-Type: %b\r\n" % (lines, content_type)
        if self.length:
            self.as_it_is += b"Content-Length: %b\r\n" % self.length


class ModelAnswer:
    """Takes an answer as it comes and gives what is to be written to the caller.

    A status outside 2xx is only kept, up to the size that a ModelError quotes.
    """

    __slots__ = (
        "_bytes",
        "_chunked",
        "_events",
        "_framed",
        "_headers",
        "_pieces",
        "ends_with_connection",
        "is_success",
        "started",
        "status",
    )

    def __init__(self, status: int, lines: AnswerLines, *, events: bool, http10: bool) -> None:
        self.status = status
        self.is_success = 200 <= status < 300
        self.started = False  # something has gone to the caller
        self._events = events
        self._pieces: list[bytes] = []  # that have not gone to the caller
        self._bytes = 0
        self._headers = lines.as_events if events else lines.as_it_is
        self._chunked = events or not lines.length  # the length is not known from the head
        self._framed = self._chunked and not http10
        self.ends_with_connection = self._chunked and http10

    def add(self, data: bytes) -> None:
        if self.is_success or self._bytes < MAX_ORIGINAL_MESSAGE:
            self._pieces.append(data)
            self._bytes += len(data)

    @property
    def is_held(self) -> bool:
        """Whether it may still become a failure without the caller having seen a part of it."""
        return not self.started and not self._events and self._bytes <= HELD_BYTES

    def take(self, start: bytes, *, last: bool) -> bytes:
        """What has not gone to the caller yet; `start` = the lines before the headers, once."""
        pieces, self._pieces = self._pieces, []
        if not self.started:
            self.started = True
            framing = b""
            if self._chunked:
                if last and not self._events:
                    framing = b"Content-Length: %d\r\n" % self._bytes
                    self._framed = False
                elif self._framed:
                    framing = b"Transfer-Encoding: chunked\r\n"
            head = b"%b%b%b\r\n" % (start, self._headers, framing)
        else:
            head = b""
        if not self._events and not self._framed:
            return b"".join((head, *pieces))
        frame = b""
        if pieces:
            data = b"".join(pieces)
            frame = self._frame(encode_payload_part(data) if self._events else data)
        return b"".join((head, frame, b"0\r\n\r\n" if last and self._framed else b""))

    def broken_off(self, *, timed_out: bool) -> bytes | None:
        """The event that ends a stream early, with the end; None = only the connection can."""
        if not self._events:
            return None
        members = {
            "Message": "The invocation took longer than it may."
            if timed_out
            else "The container broke the stream off.",
            "ErrorCode": "ModelInvocationTimeExceeded" if timed_out else "StreamBroken",
        }
        event = self._frame(encode_exception("ModelStreamError", members))
        return event + b"0\r\n\r\n" if self._framed else event

    def text(self) -> bytes:
        """What came of a failure's body."""
        return b"".join(self._pieces)

    def _frame(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._framed else data
