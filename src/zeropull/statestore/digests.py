"""The digest that every stored document carries, so that a changed byte is noticed."""

from __future__ import annotations

import hashlib

DIGEST_BYTES = 8
"""An accident, not an attacker, is what it finds: 64 bits are plenty, and a row stays small."""


def digest_of(kind: str, key: bytes, body: bytes) -> bytes:
    """BLAKE2b of a document's kind, key and body; `key` as UTF-8."""
    hashed = hashlib.blake2b(kind.encode(), digest_size=DIGEST_BYTES)
    hashed.update(b"\0%b\0" % key)
    hashed.update(body)
    return hashed.digest()
