"""Bodies of invocations as they come in: their size, their hash, and the memory that all may take.

A signature covers the whole body, so each is in memory once until it has gone to the container.
"""

from __future__ import annotations

import hashlib

from zeropull.awsprotocol.sigv4 import EMPTY_SHA256
from zeropull.gateway import refusals
from zeropull.gateway.refusals import Refusal
from zeropull.resources.settings import GatewaySettings


class BodyMemory:
    """What all bodies take together. Nothing else knows the limits of bodies."""

    __slots__ = ("max_body_bytes", "max_bytes", "used_bytes")

    def __init__(self, settings: GatewaySettings) -> None:
        self.max_body_bytes = settings.max_body_bytes
        self.max_bytes = settings.max_buffered_bytes
        self.used_bytes = 0

    def refusal(self, there_bytes: int, more_bytes: int) -> Refusal | None:
        """Why a body that holds `there_bytes` cannot take so many more; None = it can."""
        if there_bytes + more_bytes > self.max_body_bytes:
            return refusals.too_large(self.max_body_bytes)
        if self.used_bytes + more_bytes > self.max_bytes:
            return refusals.bodies_fill_memory()
        return None


class RequestBody:
    """One body. Its memory counts until `release`, which may be called twice."""

    __slots__ = ("_hash", "_memory", "pieces", "size_bytes")

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self._hash: hashlib._Hash | None = None
        self.pieces: list[bytes] = []
        self.size_bytes = 0

    def add(self, data: bytes) -> None:
        """One more piece.

        Raises:
            Refusal: it is too large, or all of them are.
        """
        memory, length = self._memory, len(data)
        size_bytes, used_bytes = self.size_bytes + length, memory.used_bytes + length
        if size_bytes > memory.max_body_bytes or used_bytes > memory.max_bytes:
            refusal = memory.refusal(self.size_bytes, length)
            assert refusal is not None
            raise refusal
        self.pieces.append(data)
        self.size_bytes = size_bytes
        memory.used_bytes = used_bytes

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
