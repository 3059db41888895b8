"""Heads of signed invocations whose signature was right, but for what differs in every request.

What one client signs within a second has the same head from its first byte to the last, except for
the signature, the SDK's ID of the call (`amz-sdk-invocation-id`, which is not signed then) and the
length of the body. Around these fields everything is compared byte for byte, and each of them is of
its plainest form: what such a head means has been found out when it came first, up to the hash of
the canonical request before its last line. The signature itself is computed anew for every body.
"""

from __future__ import annotations

from typing import NamedTuple

from zeropull.awsprotocol.sigv4 import SignedHead
from zeropull.gateway.request import Request
from zeropull.gateway.whole_request import MAX_REMEMBERED, KnownHead, plain_head

MAX_LAYOUTS = 8
_END = b"\r\n\r\n"
_AUTHORIZATION = b"authorization: "
_SIGNATURE, _SIGNATURE_DIGITS = b"Signature=", 64
_CALL_ID, _CALL_ID_LENGTH = b"\r\namz-sdk-invocation-id: ", 36
_LENGTH, _LENGTH_DIGITS = b"\r\ncontent-length: ", 9


class Layout(NamedTuple):
    """Where in a head the fields begin. `call_id_at` is 0 where there is none; the length of the
    body ends the head."""

    signature_at: int
    call_id_at: int
    length_at: int

    @classmethod
    def of(cls, head: bytes) -> Layout | None:
        """None when it has not the fields."""
        lower = head.lower()
        signature_at = head.find(_SIGNATURE) + len(_SIGNATURE)
        line_at = head.rfind(b"\r\n", 0, signature_at) + 2
        length_at = lower.rfind(_LENGTH) + len(_LENGTH)
        call_id_at = lower.find(_CALL_ID) + len(_CALL_ID)
        if (
            head.count(_SIGNATURE) != 1
            or not lower.startswith(_AUTHORIZATION, line_at)
            or not head.startswith(b"\r\n", signature_at + _SIGNATURE_DIGITS)
            or not head[length_at : -len(_END)].isdigit()
            or length_at < signature_at
        ):
            return None
        if call_id_at < len(_CALL_ID):
            call_id_at = 0
        elif not head.startswith(b"\r\n", call_id_at + _CALL_ID_LENGTH):
            return None
        return cls(signature_at, call_id_at, length_at)

    def around(self, data: bytes) -> bytes:
        """What is not in a field, up to the length of the body."""
        first, second = self.signature_at, self.call_id_at
        size = _SIGNATURE_DIGITS
        if not second:
            return data[:first] + data[first + size : self.length_at]
        if second < first:
            first, second, size = second, first, _CALL_ID_LENGTH
        last_at = second + _SIGNATURE_DIGITS + _CALL_ID_LENGTH - size
        return b"%b\0%b\0%b" % (
            data[:first],
            data[first + size : second],
            data[last_at : self.length_at],
        )


class KnownSignedHead(KnownHead):
    """One with fields of this layout."""

    __slots__ = ("layout",)

    def __init__(self, request: Request, signed: SignedHead, layout: Layout) -> None:
        super().__init__(request, signed)
        self.layout = layout


class SignedRequests:
    """`KnownRequests` where signatures are verified; the keys come with the routes."""

    def __init__(self) -> None:
        # Clients with one SDK have the same few layouts.
        self._known: dict[Layout, dict[bytes, KnownSignedHead]] = {}

    def find(self, data: bytes) -> tuple[KnownHead, bytes, bytes] | None:
        for layout, heads in self._known.items():
            known = heads.get(layout.around(data))
            if known is not None:
                break
        else:
            return None
        at = layout.length_at
        end = data.find(_END, at, at + _LENGTH_DIGITS + len(_END))
        digits = data[at:end]
        at = layout.signature_at
        signature = data[at : at + _SIGNATURE_DIGITS]
        if end < 0 or not digits.isdigit() or not signature.isalnum():
            return None
        at = layout.call_id_at
        if at and not data[at : at + _CALL_ID_LENGTH].replace(b"-", b"").isalnum():
            return None
        body = data[end + len(_END) :]
        return (known, body, signature) if len(body) == int(digits) else None

    def remember(self, data: bytes, request: Request) -> None:
        signed = request.signed
        if signed is None or request.query:
            return
        head = plain_head(data, request)
        layout = Layout.of(head) if head is not None else None
        if layout is None or signed.covers(b"amz-sdk-invocation-id", b"content-length"):
            return
        if layout not in self._known and len(self._known) >= MAX_LAYOUTS:
            self._known.clear()
        heads = self._known.setdefault(layout, {})
        if len(heads) >= MAX_REMEMBERED:
            heads.clear()
        known = KnownSignedHead(request, signed, layout)
        if known.head.is_plain:
            heads[layout.around(data)] = known

    def forget(self) -> None:
        self._known.clear()
