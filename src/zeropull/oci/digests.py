"""Digests and chain IDs (OCI image-spec, "Layer ChainID")."""

from __future__ import annotations

import hashlib
import re

from zeropull.errors import InvalidInput

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def check_digest(value: str) -> str:
    """Return `value` if it is `sha256:` and 64 lower-case hex digits.

    Raises:
        InvalidInput: anything else, other algorithms included.
    """
    if not _DIGEST.fullmatch(value):
        raise InvalidInput(
            f"{value!r} is not a digest: expected sha256: and 64 lower-case hex digits"
        )
    return value


def digest_of(data: bytes) -> str:
    """The sha256 digest of `data`, with its prefix."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def hex_of(digest: str) -> str:
    """The 64 hex digits of a digest: how directories are named after one."""
    return check_digest(digest)[7:]


def chain_ids(diff_ids: list[str]) -> list[str]:
    """Chain IDs bottom-up: the first is diff ID 0, chain i hashes chain i-1, a space, diff ID i."""
    chains: list[str] = []
    for diff_id in diff_ids:
        check_digest(diff_id)
        chains.append(digest_of(f"{chains[-1]} {diff_id}".encode()) if chains else diff_id)
    return chains
