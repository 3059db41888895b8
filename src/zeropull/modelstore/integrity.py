"""What a store knows of an object's bytes, and how they are compared with it.

Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html. An
ETag of 32 hex digits is the MD5 of an object that was stored in one part and is not encrypted with
a key of the customer's; checksums of several parts say nothing of the whole.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import google_crc32c
from isal import isal_zlib

from zeropull.errors import IntegrityError
from zeropull.modelstore.protocol import Digest, ObjectFacts

_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_READ_BYTES = 4 << 20


class _Hasher(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


def known_digest(
    headers: Mapping[str, str], etag: str | None, *, etag_is_md5: bool
) -> Digest | None:
    """The quickest that the headers of a HEAD with `x-amz-checksum-mode: ENABLED` say of the whole
    object. Names of headers are in lower case."""
    found: dict[str, bytes] = {}
    if headers.get("x-amz-checksum-type", "").upper() != "COMPOSITE":
        for algorithm in ("crc32c", "crc32", "sha256", "sha1"):
            if (value := _decoded(headers, algorithm)) is not None:
                found[algorithm] = value
    encrypted = headers.get("x-amz-server-side-encryption", "AES256") != "AES256"
    encrypted |= "x-amz-server-side-encryption-customer-algorithm" in headers
    match = _MD5.fullmatch(etag or "")
    if match is not None and etag_is_md5 and not encrypted:
        found["md5"] = bytes.fromhex(match[1])
    # In the order of their speed: each finds what was damaged on its way, and MD5, at some
    # 600 MB/s, would be slower than many a store.
    order = (name for name in ("crc32c", "crc32", "sha256", "sha1", "md5") if name in found)
    best = next(order, None)
    return Digest(best, found[best]) if best is not None else None


class FileCheck:
    """Compares one file with its digest while its parts arrive in any order: what is whole from the
    beginning on is hashed out of the page cache."""

    def __init__(self, path: Path, facts: ObjectFacts) -> None:
        self._path = path
        self._facts = facts
        self._whole = 0
        self._beyond: dict[int, int] = {}
        self._more = asyncio.Event()

    def arrived(self, start: int, end: int) -> None:
        """The bytes from `start` up to `end` are in the file."""
        self._beyond[start] = end
        while self._whole in self._beyond:
            self._whole = self._beyond.pop(self._whole)
        self._more.set()

    async def run(self, expected: Digest) -> None:
        """Returns when the file is whole and right.

        Raises:
            IntegrityError: it is whole, and something else than what the store has.
        """
        hasher = _HASHERS[expected.algorithm]()
        hashed = 0
        while hashed < self._facts.size:
            await self._more.wait()
            self._more.clear()
            until = self._whole
            await asyncio.to_thread(_hash, hasher, self._path, hashed, until)
            hashed = until
        if hasher.digest() != expected.value:
            raise IntegrityError(
                f"{self._facts.key} arrived with the {expected.algorithm} "
                f"{hasher.digest().hex()}, and its store says {expected.value.hex()}: it is "
                "fetched again"
            )


def _hash(hasher: _Hasher, path: Path, start: int, end: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while start < end:
            part = os.pread(descriptor, min(_READ_BYTES, end - start), start)
            if not part:
                return  # removed meanwhile: whoever did it says why
            hasher.update(part)
            start += len(part)
    finally:
        os.close(descriptor)


def _decoded(headers: Mapping[str, str], algorithm: str) -> bytes | None:
    value = headers.get(f"x-amz-checksum-{algorithm}")
    if value is None or "-" in value:  # BASE64-PARTS is a checksum of checksums
        return None
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None


class _Crc:
    def __init__(self, extend: Callable[[int, bytes], int]) -> None:
        self._extend = extend
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = self._extend(self._value, data)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


_HASHERS: dict[str, Callable[[], _Hasher]] = {
    "sha256": hashlib.sha256,
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "crc32c": lambda: _Crc(google_crc32c.extend),
    "crc32": lambda: _Crc(lambda value, data: isal_zlib.crc32(data, value)),
}
