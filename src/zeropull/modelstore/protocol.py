"""What an artifact's objects are read through, whatever store they lie in.

Life: opened by `zeropull.modelstore.stores`, `head` or `list_under` once, any number of `stream`s
at the same time, `close`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """One object as it was when the download began. `key` is the whole key.

    `has_ranges` False: the server sends the object whole only.
    """

    key: str
    size: int
    etag: str | None
    has_ranges: bool = True


@dataclass(frozen=True, slots=True)
class Digest:
    """What a store says of an object's bytes. `algorithm`: sha256, sha1, md5, crc32c or crc32."""

    algorithm: str
    value: bytes


class ObjectSource(Protocol):
    """One bucket, one URL or one local directory.

    Every method raises NotFound, AccessDenied or Unavailable; `stream` raises ArtifactError when
    the object is no longer the one that the facts describe.
    """

    async def head(self, key: str) -> ObjectFacts:
        """The facts of one object."""

    async def list_under(self, prefix: str) -> list[ObjectFacts]:
        """Every object whose key begins with `prefix`, sorted by key."""

    async def digest(self, facts: ObjectFacts) -> Digest | None:
        """What the store knows of the object's bytes, None when it knows nothing."""

    def stream(self, facts: ObjectFacts, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` up to `end`, in pieces; it may break off with Unavailable."""

    async def close(self) -> None:
        """Let connections go."""
