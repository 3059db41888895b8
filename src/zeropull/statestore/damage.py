"""Documents that are damaged: each is set aside, named, and the rest goes on."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from zeropull.statestore.connection import translated
from zeropull.statestore.digests import digest_of
from zeropull.telemetry import get_logger

WRONG_DIGEST = "its bytes are not those that were written"
LIST_DAMAGED = "SELECT kind, key, reason, found_s FROM set_aside ORDER BY rowid"

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


def listed(rows: Iterable[tuple[object, ...]]) -> list[DamagedDocument]:
    """The rows of LIST_DAMAGED."""
    return [
        DamagedDocument(readable(kind), readable(key), readable(reason), int(str(found_s)))
        for kind, key, reason, found_s in rows
    ]


def damaged_in(database: Path) -> list[DamagedDocument]:
    """Oldest first, of a state that another process may use.

    Raises:
        ZeropullError: it cannot be read.
    """
    try:
        connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True)
        with contextlib.closing(connection):
            tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'set_aside'")
            return listed(connection.execute(LIST_DAMAGED)) if tables.fetchone() else []
    except sqlite3.Error as error:
        raise translated(error, database) from error


def readable(text: object) -> str:
    return text.decode(errors="backslashreplace") if isinstance(text, bytes) else str(text)
