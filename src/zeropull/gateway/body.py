"""Bodies of requests as they come in: their size, their hash, and the memory that all may take.

A signature covers the whole body, so each is in memory once until it has gone to the container.
Until then nobody knows whether its sender may send anything: bodies that are not whole yet make
room for others.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from zeropull.awsprotocol.sigv4 import EMPTY_SHA256
from zeropull.gateway import refusals
from zeropull.gateway.refusals import Refusal

SLOW_BYTES_PER_S = 256 * 1024  # below it, a body that is not whole goes first
SLOW_AFTER_S = 1.0  # the rate of a younger one means nothing


class _Unfinished(NamedTuple):
    began_s: float
    give_up: Callable[[Refusal], None]


class BodyMemory:
    """What all bodies take together. Nothing else knows the limits of bodies."""

    __slots__ = ("_monotonic", "_unfinished", "max_body_bytes", "max_bytes", "used_bytes")

    def __init__(
        self, *, max_body_bytes: int, max_bytes: int, monotonic: Callable[[], float]
    ) -> None:
        self.max_body_bytes = max_body_bytes
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._monotonic = monotonic
        self._unfinished: dict[RequestBody, _Unfinished] = {}

    def watch(self, body: RequestBody, give_up: Callable[[Refusal], None]) -> None:
        """Its head is there, and the rest is to come."""
        self._unfinished[body] = _Unfinished(self._monotonic(), give_up)

    def unwatch(self, body: RequestBody) -> None:
        self._unfinished.pop(body, None)

    def refusal(self, body: RequestBody, more_bytes: int) -> Refusal | None:
        """Why this body cannot take so many more; None = it can, for which others may have gone."""
        if body.size_bytes + more_bytes > self.max_body_bytes:
            return refusals.too_large(self.max_body_bytes)
        while self.used_bytes + more_bytes > self.max_bytes:
            other = self._one_to_go(body)
            if other is None:
                return refusals.bodies_fill_memory()
            self._unfinished.pop(other).give_up(refusals.bodies_fill_memory())
        return None

    def _one_to_go(self, asker: RequestBody) -> RequestBody | None:
        """The slowest; else the largest of the address that has the most, if that is another."""
        now_s = self._monotonic()
        slowest, least = None, float(SLOW_BYTES_PER_S)
        by_address: Counter[str] = Counter()
        for body, unfinished in self._unfinished.items():
            by_address[body.address] += body.size_bytes
            age_s = now_s - unfinished.began_s
            if age_s < SLOW_AFTER_S or body is asker or not body.size_bytes:
                continue
            if (rate := body.size_bytes / age_s) < least:
                slowest, least = body, rate
        if slowest is not None or not by_address:
            return slowest
        address, most = by_address.most_common(1)[0]
        if address == asker.address or most <= by_address[asker.address]:
            return None
        theirs = [body for body in self._unfinished if body.address == address]
        return max(theirs, key=lambda body: body.size_bytes)


class RequestBody:
    """One body. Its memory counts until `release`, which may be called twice.

    `address` is its sender's.
    """

    __slots__ = ("_hash", "_memory", "address", "pieces", "size_bytes")

    def __init__(self, memory: BodyMemory, address: str) -> None:
        self._memory = memory
        self._hash: hashlib._Hash | None = None
        self.address = address
        self.pieces: list[bytes] = []
        self.size_bytes = 0

    def refusal(self, length_bytes: int) -> Refusal | None:
        """Why a body of this length need not be sent; None = it may come."""
        return self._memory.refusal(self, length_bytes)

    def watch(self, give_up: Callable[[Refusal], None]) -> None:
        """The head is there, and the body is to come. Until `finish`, `give_up` may be called to
        refuse the request, so that it makes room."""
        self._memory.watch(self, give_up)

    def finish(self) -> None:
        """It is whole: it makes room for no other any more."""
        self._memory.unwatch(self)

    def count(self, length_bytes: int) -> None:
        """So many bytes more, kept here or elsewhere.

        Raises:
            Refusal: it is too large, or all of them are.
        """
        memory = self._memory
        size_bytes = self.size_bytes + length_bytes
        if (
            size_bytes > memory.max_body_bytes
            or memory.used_bytes + length_bytes > memory.max_bytes
        ):
            refusal = memory.refusal(self, length_bytes)
            if refusal is not None:
                raise refusal
        self.size_bytes = size_bytes
        memory.used_bytes += length_bytes

    def add(self, data: bytes) -> None:
        """As `count`, for a piece that is kept here."""
        self.count(len(data))
        self.pieces.append(data)

    def add_hashed(self, data: bytes) -> None:
        """As `add`, where a signature is verified."""
        self.add(data)
        if self._hash is None:
            self._hash = hashlib.sha256(data)
        else:
            self._hash.update(data)

    def sha256(self) -> str:
        """Of all pieces, which came by `add_hashed`."""
        return self._hash.hexdigest() if self._hash is not None else EMPTY_SHA256

    def take(self) -> list[bytes]:
        """The pieces, which are not kept here any more. Their memory counts until `release`."""
        pieces, self.pieces = self.pieces, []
        return pieces

    def release(self) -> None:
        if self.pieces:
            self.pieces = []
        self._memory.used_bytes -= self.size_bytes
        self.size_bytes = 0
