"""Heads of whole invocations that the strict parser has accepted, byte for byte.

A client mostly sends the very head that it sent before: the same endpoint, type and length. What
those bytes mean has been found out then, and a request that begins with them and is exactly as long
as they say needs no parser. Whatever differs in one byte, comes in pieces or has anything behind it
goes to the parser. A signed request differs in every one: for those this would be work for nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zeropull.gateway.invocationhead import InvocationHead
from zeropull.gateway.request import Request

if TYPE_CHECKING:
    from zeropull.gateway.routing import Group

MAX_REMEMBERED = 512
MAX_BYTES = 2048  # of a head

_END = b"\r\n\r\n"
# What changes how the bytes after the head, or the next request, are to be read.
_OTHER_FRAMING = frozenset({b"transfer-encoding", b"upgrade", b"expect", b"connection", b"trailer"})


class KnownHead:
    """A head with the length of the body behind it, and what follows from both.

    `request` is the one that first had it, complete: all that come with this head share it. `lines`
    is what the container gets of it. `group` takes each of them by the routes in force, which is
    found out with the first; None too when that is decided for each of them anew.
    """

    __slots__ = ("data", "group", "head", "length_bytes", "lines", "request", "streamed")

    def __init__(self, data: bytes, request: Request, length_bytes: int) -> None:
        self.data = data
        self.request = request
        self.length_bytes = length_bytes
        self.head = InvocationHead(request.headers)
        self.lines = self.head.container_lines(length_bytes)
        self.group: Group | None = None
        self.streamed = False


class WholeRequests:
    """What is remembered while the same routes are in force, for all connections."""

    def __init__(self) -> None:
        self._known: dict[bytes, KnownHead] = {}
        self._last: KnownHead | None = None  # the next one is most likely the same

    def find(self, data: bytes) -> tuple[KnownHead, bytes] | None:
        """The head and the body, when `data` is one whole request with a known head."""
        known = self._last
        if known is None or not data.startswith(known.data):
            known = self._known.get(data[: data.find(_END) + 4])
            if known is None:
                return None
            self._last = known
        body = data[len(known.data) :]
        return (known, body) if len(body) == known.length_bytes else None

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
        self._known[head] = KnownHead(head, request, len(data) - end)

    def forget(self) -> None:
        """Other routes are in force: each is parsed once more."""
        self._known.clear()
        self._last = None
