"""Heads of whole answers that the strict parser has accepted, byte for byte.

A container's answers mostly begin with the very bytes of an earlier one: the same server, type and
length within the same second. What those bytes mean has been found out then, and an answer that
begins with them and is exactly as long as they say needs no parser. Whatever differs in one byte,
comes in pieces or has anything behind it goes to the parser.
"""

from __future__ import annotations

from zeropull.gateway.modelanswer import caller_lines

MAX_REMEMBERED = 512
MAX_BYTES = 2048  # of a head

_END = b"\r\n\r\n"


class WholeHead:
    """A head of status 200 on a connection that stays, with the length of the body behind it."""

    __slots__ = ("data", "headers", "length_bytes", "lines")

    def __init__(self, data: bytes, headers: list[tuple[bytes, bytes]], length_bytes: int) -> None:
        self.data = data
        self.headers = headers
        self.length_bytes = length_bytes
        self.lines = caller_lines(headers)


class WholeHeads:
    """What is remembered; a pure function of the bytes, so that all connections may share it."""

    def __init__(self) -> None:
        self._known: dict[bytes, WholeHead] = {}
        self._last: WholeHead | None = None  # the next one is most likely the same

    def find(self, data: bytes) -> tuple[WholeHead, bytes] | None:
        """The head and the body, when `data` is one whole answer with a known head."""
        head = self._last
        if head is None or not data.startswith(head.data):
            head = self._known.get(data[: data.find(_END) + 4])
            if head is None:
                return None
            self._last = head
        body = data[len(head.data) :]
        return (head, body) if len(body) == head.length_bytes else None

    def remember(self, data: bytes, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """`data` was one answer from a message's first byte on, parsed as this, and its connection
        stays open. Kept only when there is no doubt where its head ended."""
        named = dict(headers)
        if b"transfer-encoding" in named or b"upgrade" in named or status != 200:
            return
        end = data.find(_END) + 4
        head = data[:end]
        lines = head.count(b"\r\n")
        if not 4 < end <= MAX_BYTES:
            return
        if head.count(b"\n") != lines or head.count(b"\r") != lines:
            return
        lengths = [value for name, value in headers if name == b"content-length"]
        if len(lengths) != 1:
            return
        if not lengths[0].isdigit() or int(lengths[0][:18]) != len(data) - end:
            return
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        self._known[head] = WholeHead(head, headers, len(data) - end)
