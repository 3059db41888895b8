"""Documents that are damaged: each is set aside, named, and the rest goes on."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from zeropull.statestore.digests import digest_of
from zeropull.telemetry import get_logger

WRONG_DIGEST = "its bytes are not those that were written"
NO_TEXT = "its key is no text"

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DamagedDocument:
    """One that was set aside: it counts as missing. `found_s` is Unix time."""

    kind: str
    key: str
    reason: str
    found_s: int


def find_damaged(connection: sqlite3.Connection) -> Iterator[tuple[int, bytes, bytes, str]]:
    """(row, kind, key, reason) of every document whose digest does not fit."""
    rows = connection.execute("SELECT rowid, kind, key, digest, body FROM documents")
    for row, kind, key, digest, body in rows:
        try:
            is_whole = digest_of(kind.decode(), key, body) == digest
        except (UnicodeDecodeError, TypeError, AttributeError):
            is_whole = False  # a column has another type
        if not is_whole:
            yield row, kind, key, WRONG_DIGEST


def set_aside(
    execute: Callable[[str, tuple[object, ...]], object],
    damaged: Iterable[tuple[int, object, object, str]],
) -> None:
    """Move rows out of the documents. Inside a transaction of the caller."""
    for row, kind, key, reason in damaged:
        execute(
            "INSERT INTO set_aside SELECT kind, key, version, revision, digest, body, ?,"
            " CAST(strftime('%s', 'now') AS INTEGER) FROM documents WHERE rowid = ?",
            (reason, row),
        )
        execute("DELETE FROM documents WHERE rowid = ?", (row,))
        log.error("document set aside", kind=readable(kind), key=readable(key), reason=reason)


def list_damaged(connection: sqlite3.Connection) -> list[DamagedDocument]:
    """Oldest first."""
    rows = connection.execute("SELECT kind, key, reason, found_s FROM set_aside ORDER BY rowid")
    return [
        DamagedDocument(readable(kind), readable(key), readable(reason), int(found_s))
        for kind, key, reason, found_s in rows
    ]


def readable(text: object) -> str:
    return text.decode(errors="backslashreplace") if isinstance(text, bytes) else str(text)
