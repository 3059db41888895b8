"""Heads of whole invocations that the strict parser has accepted, byte for byte.

A client mostly sends the very head that it sent before: the same endpoint, type and length. What
those bytes mean has been found out then, and a request that begins with them and is exactly as long
as they say needs no parser. Whatever differs in one byte, comes in pieces or has anything behind it
goes to the parser. A signed request differs in every one: for those this would be work for nothing.
"""

from __future__ import annotations

from zeropull.gateway.invocationhead import InvocationHead
from zeropull.gateway.request import Request

MAX_REMEMBERED = 512
MAX_BYTES = 2048  # of a head

_END = b"\r\n\r\n"
# What changes how the bytes after the head, or the next request, are to be read.
_OTHER_FRAMING = frozenset({b"transfer-encoding", b"upgrade", b"expect", b"connection", b"trailer"})


class WholeRequests:
    """What is remembered; a pure function of the bytes, so that all connections may share it."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Request, int]] = {}  # the length is the body's

    def find(self, data: bytes) -> tuple[Request, bytes] | None:
        """The request that first had this head, and the body behind it, when `data` is one whole
        request with a known head."""
        end = data.find(_END) + 4
        known = self._known.get(data[:end])
        if known is None or len(data) - end != known[1]:
            return None
        return known[0], data[end:]

    def remember(self, data: bytes, request: Request) -> None:
        """`data` was one request from its first byte on, parsed as this. Kept only when there is no
        doubt where its head ended."""
        end = data.find(_END) + 4
        head = data[:end]
        lines = head.count(b"\r\n")
        if not 4 < end <= MAX_BYTES or request.http10 or not request.keep_alive:
            return
        if not request.path.startswith(b"/endpoints/"):
            return
        if head.count(b"\n") != lines or head.count(b"\r") != lines:
            return
        names = [name.lower() for name, _ in request.headers]
        lengths = [
            value
            for name, (_, value) in zip(names, request.headers, strict=True)
            if name == b"content-length"
        ]
        if len(lengths) != 1 or not _OTHER_FRAMING.isdisjoint(names):
            return
        if not lengths[0].isdigit() or int(lengths[0][:18]) != len(data) - end:
            return
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        request.head = InvocationHead(request.headers)
        self._known[head] = (request, len(data) - end)
