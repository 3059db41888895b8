"""Heads of answers that the strict parser has accepted, byte for byte.

A container's answers mostly begin with the very bytes of an earlier one: the same server, type and
length within the same second, or the same head before each stream. What those bytes mean has been
found out then. An answer that begins with them and is exactly as long as they say needs no parser;
nor does a chunk that came whole. Whatever differs in one byte or has anything behind it goes to the
parser, and so does the rest of a stream from the first chunk on that did not come in one read.
"""

from __future__ import annotations

from zeropull.gateway.model_answer import AnswerLines

MAX_REMEMBERED = 512
MAX_BYTES = 2048  # of a head

_END = b"\r\n\r\n"
_START = b"HTTP/1.1 200 "
_SIZE_DIGITS = 8
_HEX = b"0123456789abcdefABCDEF"


class KnownAnswerHead:
    """A head of status 200 on a connection that stays. `length_bytes` is that of the body behind
    it, -1 when that comes in chunks."""

    __slots__ = ("data", "headers", "length_bytes", "lines")

    def __init__(self, data: bytes, headers: list[tuple[bytes, bytes]], length_bytes: int) -> None:
        self.data = data
        self.headers = headers
        self.length_bytes = length_bytes
        self.lines = AnswerLines(headers)


class KnownAnswerHeads:
    """What is remembered; a pure function of the bytes, so that all connections may share it."""

    def __init__(self) -> None:
        self._known: dict[bytes, KnownAnswerHead] = {}
        self._last: KnownAnswerHead | None = None  # the next one is most likely the same

    def find(self, data: bytes) -> KnownAnswerHead | None:
        """The known head that `data` begins with: one with a length only if the whole body follows,
        and nothing else."""
        head = self._last
        if head is None or not data.startswith(head.data):
            head = self._known.get(data[: data.find(_END) + 4])
            if head is None:
                return None
            self._last = head
        if head.length_bytes >= 0 and len(data) != len(head.data) + head.length_bytes:
            return None
        return head

    def remember(self, data: bytes, headers: list[tuple[bytes, bytes]], *, whole: bool) -> None:
        """An answer began with `data`, its first byte being a message's, was parsed as this, and
        its connection stays open. `whole`: there was no more. Kept only when there is no doubt
        where its head ended."""
        end = data.find(_END) + 4
        head = data[:end]
        lines = head.count(b"\r\n")
        if not 4 < end <= MAX_BYTES or not head.startswith(_START):
            return
        if head.count(b"\n") != lines or head.count(b"\r") != lines:
            return
        lengths = [value for name, value in headers if name == b"content-length"]
        codings = [value for name, value in headers if name == b"transfer-encoding"]
        if b"upgrade" in dict(headers):
            return
        if codings == [b"chunked"] and not lengths:
            length = -1
        elif whole and not codings and len(lengths) == 1:
            length = len(data) - end
            if not lengths[0].isdigit() or int(lengths[0][:18]) != length:
                return
        else:
            return
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        self._known[head] = KnownAnswerHead(head, headers, length)


def whole_chunks(data: bytes, at: int) -> tuple[list[bytes], int, bool]:
    """The payloads of the chunks (RFC 9112, section 7.1) that lie whole in `data` from `at` on,
    where what comes behind them begins, and whether that is nothing since the last one ends there.

    Only the plainest form is taken: a size, a line's end, so many bytes, a line's end.
    """
    payloads: list[bytes] = []
    length = len(data)
    while at < length:
        line = data.find(b"\r\n", at, at + _SIZE_DIGITS + 2)
        size = data[at:line]
        if line <= at or size.strip(_HEX):
            break
        first = line + 2
        end = first + int(size, 16)
        if end == first:
            # With trailers, or another answer behind it, it is for the parser.
            if length - first == 2 and data.endswith(b"\r\n"):
                return payloads, length, True
            break
        if data[end : end + 2] != b"\r\n":
            break
        payloads.append(data[first:end])
        at = end + 2
    return payloads, at, False
