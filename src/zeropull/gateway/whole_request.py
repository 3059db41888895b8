"""Heads of whole invocations that the strict parser has accepted, byte for byte.

A client mostly sends the very head that it sent before: the same endpoint, type and length. What
those bytes mean has been found out then, and a request that begins with them and is exactly as long
as they say needs no parser. Whatever differs in one byte, comes in pieces or has anything behind it
goes to the parser. For signed requests see `zeropull.gateway.signed_request`.
"""

from __future__ import annotations

from typing import Protocol

from zeropull.awsprotocol.sigv4 import SignedHead
from zeropull.gateway.invocation_head import InvocationHead
from zeropull.gateway.request import Request
from zeropull.gateway.routing import Group

MAX_REMEMBERED = 512
MAX_BYTES = 2048  # of a head

_END = b"\r\n\r\n"
# What changes how the bytes after the head, or the next request, are to be read.
_OTHER_FRAMING = frozenset({b"transfer-encoding", b"upgrade", b"expect", b"connection", b"trailer"})


class KnownHead:
    """What follows from a head.

    `request` is the one that first had it, complete: all that come with this head share it. `group`
    takes each of them by the routes in force, which is found out with the first; None too when that
    is decided for each of them anew. `signed` verifies those that must be signed.
    """

    __slots__ = ("group", "head", "lines", "request", "signed", "streamed")

    def __init__(self, request: Request, signed: SignedHead | None = None) -> None:
        self.request = request
        self.head = InvocationHead(request.headers)
        self.lines: bytes | None = None  # that the container gets, where the length is known too
        self.signed = signed
        self.group: Group | None = None
        self.streamed = False


class KnownWholeHead(KnownHead):
    """One with the length of the body behind it."""

    __slots__ = ("data", "length_bytes")

    def __init__(self, data: bytes, request: Request, length_bytes: int) -> None:
        super().__init__(request)
        self.data = data
        self.length_bytes = length_bytes
        self.lines = self.head.container_lines(length_bytes)


class KnownRequests(Protocol):
    """What is remembered while the same routes are in force, for all connections."""

    def find(self, data: bytes) -> tuple[KnownHead, bytes, bytes] | None:
        """The head, the body and the signature, if any, when `data` is one whole request with a
        known head. The signature has yet to be verified."""

    def remember(self, data: bytes, request: Request) -> None:
        """`data` was one request from its first byte on, parsed as this. Kept only when there is no
        doubt where its head ended."""

    def forget(self) -> None:
        """Other routes are in force: each is parsed once more."""


class WholeRequests:
    """`KnownRequests` where no signatures are verified."""

    def __init__(self) -> None:
        self._known: dict[bytes, KnownWholeHead] = {}
        self._last: KnownWholeHead | None = None  # the next one is most likely the same

    def find(self, data: bytes) -> tuple[KnownHead, bytes, bytes] | None:
        known = self._last
        if known is None or not data.startswith(known.data):
            known = self._known.get(data[: data.find(_END) + 4])
            if known is None:
                return None
            self._last = known
        body = data[len(known.data) :]
        return (known, body, b"") if len(body) == known.length_bytes else None

    def remember(self, data: bytes, request: Request) -> None:
        head = plain_head(data, request)
        if head is None:
            return
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        known = KnownWholeHead(head, request, len(data) - len(head))
        if known.head.is_plain:
            self._known[head] = known

    def forget(self) -> None:
        self._known.clear()
        self._last = None


def plain_head(data: bytes, request: Request) -> bytes | None:
    """The head of `data`, which was parsed as one whole invocation; None when anything in it might
    make the parser read it otherwise than it looks, or the next request on the connection."""
    end = data.find(_END) + 4
    head = data[:end]
    lines = head.count(b"\r\n")
    if not 4 < end <= MAX_BYTES or request.http10 or not request.keep_alive:
        return None
    if not request.is_invocation:
        return None
    if head.count(b"\n") != lines or head.count(b"\r") != lines:
        return None
    names = [name.lower() for name, _ in request.headers]
    lengths = [
        value
        for name, (_, value) in zip(names, request.headers, strict=True)
        if name == b"content-length"
    ]
    if len(lengths) != 1 or not _OTHER_FRAMING.isdisjoint(names):
        return None
    if not lengths[0].isdigit() or int(lengths[0][:18]) != len(data) - end:
        return None
    return head
