"""What the head of an invocation says: by InvokeEndpoint of the SageMaker Runtime API."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from zeropull.gateway import refusals
from zeropull.gateway.refusals import Refusal
from zeropull.gateway.runtime_members import BY_HEADER

_PREFIX = b"x-amzn-sagemaker-"
_STREAMED_OPERATION = b"invocations-response-stream"
_PLAIN_BYTES = 1024  # of Content-Type and Accept: below it, they are as they must be
_REMEMBERED_NAMES = 256  # each may be as long as a head

_IGNORED, _FORWARDED, _LENGTH, _OWN, _EXPECT = range(5)
_KINDS = {
    b"content-type": _FORWARDED,
    b"accept": _FORWARDED,
    b"content-length": _LENGTH,
    b"expect": _EXPECT,
}
_REMEMBERED_PATHS = 128  # one may be as long as a head


class InvocationHead:
    """What of the headers matters. `forward` is the lines that the container gets.

    `problem` says why a value is not as the service model wants it. `unserved` is the text for a
    member that no endpoint here serves (see `RuntimeMember.refusal`), "" without one.
    """

    __slots__ = (
        "component",
        "expects_continue",
        "forward",
        "length_bytes",
        "problem",
        "session_id",
        "unserved",
        "variant",
    )

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.variant: str | None = None
        self.component: str | None = None
        self.session_id: str | None = None
        self.problem: Refusal | None = None
        self.unserved = ""
        self.length_bytes = 0
        self.expects_continue = False
        forward = b""
        for name, value in headers:
            kind = _kind(name)
            if kind == _IGNORED:
                continue
            if kind == _FORWARDED:
                if len(value) > _PLAIN_BYTES or not value.isascii():
                    self._check(name.lower(), value.decode("latin-1"))
                forward += b"%b: %b\r\n" % (name, value)
            elif kind == _LENGTH:
                self.length_bytes = int(value)
            elif kind == _OWN:
                forward += self._forwarded(name.lower(), name, value)
            else:
                self.expects_continue = value.lower() == b"100-continue"
        self.forward = forward

    def container_lines(self, length_bytes: int) -> bytes:
        """What of the head the container gets, its end included, with a body of this length."""
        return b"%bContent-Length: %d\r\n\r\n" % (self.forward, length_bytes)

    @property
    def is_plain(self) -> bool:
        """Whether each request with this head goes the same way: it is served, to any copy."""
        return self.problem is None and not self.unserved and self.session_id is None

    def refuse_unfit(self, endpoint: str) -> None:
        """Raises:
        Refusal: a member is not as the service model wants it, or not served here.
        """
        if self.problem is not None:
            raise self.problem
        if self.unserved:
            raise refusals.validation_error(self.unserved.format(endpoint=endpoint))

    def _check(self, lower: bytes, value: str) -> None:
        """Keep the first problem."""
        member = BY_HEADER.get(lower)
        if member is None:
            return
        self.problem = self.problem or member.problem(value)
        self.unserved = self.unserved or member.refusal

    def _forwarded(self, lower: bytes, name: bytes, value: bytes) -> bytes:
        text = value.decode("latin-1")
        self._check(lower, text)
        match lower[17:]:
            case b"target-variant":
                self.variant = text
            case b"inference-component":
                self.component = text
            case b"session-id":
                self.session_id = text
            case b"accept":  # InvokeEndpointWithResponseStream calls it so
                return b"Accept: %b\r\n" % value
        return b"%b: %b\r\n" % (name, value)


@lru_cache(maxsize=_REMEMBERED_NAMES)
def _kind(name: bytes) -> int:
    lower = name.lower()
    return _OWN if lower.startswith(_PREFIX) else _KINDS.get(lower, _IGNORED)


@lru_cache(maxsize=_REMEMBERED_PATHS)
def parse_path(path: bytes, method: bytes) -> tuple[str, bool]:
    """The endpoint's name, and whether the answer is streamed.

    Raises:
        Refusal: it is none of the two operations.
    """
    parts = path.split(b"/")  # "", "endpoints", name, operation
    operation = parts[3] if len(parts) == 4 else b""
    if operation != b"invocations" and operation != _STREAMED_OPERATION:
        raise Refusal(
            404,
            "UnknownOperationException",
            f"{path.decode('latin-1')} is no operation of this service.",
        )
    if method != b"POST":
        raise Refusal(405, "UnknownOperationException", "Invocations are POST requests.")
    raw_name = parts[2]
    if b"%" in raw_name:
        raw_name = unquote_to_bytes(raw_name)
    return raw_name.decode("utf-8", "replace"), operation == _STREAMED_OPERATION
