"""A typed document store in one SQLite file, with transactions and change notification.

Writes are on disk (fsync) when the call, or the outermost transaction, returns; a process killed at
any point leaves the state before or after a transaction, never in between. Calls are synchronous
and short: a read is microseconds, a commit one fsync. https://www.sqlite.org/wal.html

A document whose bytes are not those that were written is set aside and counts as missing
(`zeropull.statestore.damage`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

import msgspec

from zeropull.errors import AlreadyExists, Conflict, DiskFull, NotFound
from zeropull.resources.documents import Document
from zeropull.statestore.bodies import packed, unpacked
from zeropull.statestore.damage import LIST_DAMAGED, WRONG_DIGEST, DamagedDocument, listed, readable
from zeropull.statestore.digests import digest_of
from zeropull.statestore.reserve import DiskReserve
from zeropull.statestore.state_file import Row, StateFile

_COLUMNS = "SELECT rowid, key, version, revision, digest, body FROM documents"
_INDEXES = {"endpoint_uid": "documents_endpoint", "instance_id": "documents_instance"}

D = TypeVar("D", bound=Document)


@dataclass(frozen=True, slots=True)
class Stored(Generic[D]):
    """A document as read. `version` counts its own changes from 1; `revision` is the store's at
    its last change."""

    document: D
    version: int
    revision: int


class Store:
    """Documents by (kind, key). Usable from any thread; a transaction holds the store to itself.

    `revision` grows by one with every transaction that changed something.
    """

    def __init__(self, file: StateFile) -> None:
        self._file = file

    @classmethod
    def open(cls, path: Path, *, reserve: DiskReserve | None = None) -> Store:
        """Open the file, or make it with its folder (0700, 0600). Damaged documents are set aside.

        `reserve` is given up when there is no room to open the file or to write.

        Raises:
            Conflict: another process has it open.
            DiskFull: there is no room, and no reserve.
            IntegrityError: the file is damaged or no database.
            ConfigurationError: a newer release wrote it.
        """
        return cls(StateFile(path, reserve))

    @property
    def path(self) -> Path:
        return self._file.path

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def get(self, document_type: type[D], key: str) -> Stored[D] | None:
        """The document, or None."""
        rows = self._file.query(f"{_COLUMNS} WHERE kind = ? AND key = ?", (document_type.kind, key))
        found = self._decoded(document_type, rows)
        return found[0] if found else None

    def require(self, document_type: type[D], key: str) -> Stored[D]:
        """The document.

        Raises:
            NotFound: there is none.
        """
        found = self.get(document_type, key)
        if found is None:
            raise NotFound(f"there is no {document_type.kind.replace('_', ' ')} {key!r}")
        return found

    def select(
        self, document_type: type[D], *, prefix: str = "", **where: str | int | float
    ) -> list[Stored[D]]:
        """Documents in the order of their keys; `where` compares top-level fields for equality.

        `endpoint_uid=` and `instance_id=` are indexed, and of them the first one that is named is
        used; the other fields are compared one document after the other.
        """
        column = next((name for name in where if name in _INDEXES), None)
        sql, values = f"{_COLUMNS} WHERE kind = ?", [document_type.kind]
        if column is not None:
            # Without the name, SQLite takes the index of all keys and reads every document.
            sql = f"{_COLUMNS} INDEXED BY {_INDEXES[column]} WHERE kind = ? AND {column} = ?"
            values.append(str(where.pop(column)))
        if prefix:
            sql += " AND key >= ? AND key < ?"
            values += [prefix, prefix + "\U0010ffff"]
        found = self._decoded(document_type, self._file.query(sql + " ORDER BY key", tuple(values)))
        wanted = list(where.items())
        return [
            each
            for each in found
            if all(getattr(each.document, name) == value for name, value in wanted)
        ]

    def keys(self, document_type: type[D]) -> list[str]:
        """Of all documents of the kind, in order; nothing is decoded."""
        sql = "SELECT key FROM documents INDEXED BY documents_key WHERE kind = ? ORDER BY key"
        return [readable(key) for (key,) in self._file.query(sql, (document_type.kind,))]

    def endpoint_uids(self, document_type: type[D]) -> set[str]:
        """Of all documents of the kind; nothing is decoded."""
        sql = (
            "SELECT DISTINCT endpoint_uid FROM documents INDEXED BY documents_endpoint"
            " WHERE kind = ? AND endpoint_uid IS NOT NULL"
        )
        return {readable(uid) for (uid,) in self._file.query(sql, (document_type.kind,))}

    def damaged(self) -> list[DamagedDocument]:
        """The documents that were set aside, oldest first; kept until the state is restored."""
        return listed(self._file.query(LIST_DAMAGED))

    def put(self, document: Document, *, expected_version: int | None = None) -> int:
        """Create or replace; returns the new version.

        `expected_version`: None = whatever is there, 0 = nothing may be there.

        Raises:
            AlreadyExists: 0 was expected, and there is one.
            Conflict: another version is there, or none.
        """
        kind, key = type(document).kind, document.key
        body = packed(msgspec.json.encode(document))
        with self.transaction():
            found, owner = self._check_version(kind, key, expected_version)
            version = found + 1
            new_owner = getattr(document, "endpoint_uid", None)
            self._file.execute(
                "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (kind, key) DO UPDATE SET version = excluded.version,"
                " revision = excluded.revision, endpoint_uid = excluded.endpoint_uid,"
                " instance_id = excluded.instance_id, digest = excluded.digest,"
                " body = excluded.body",
                (
                    kind,
                    key,
                    version,
                    self.revision + 1,
                    new_owner,
                    getattr(document, "instance_id", None),
                    digest_of(kind, key.encode(), body),
                    body,
                ),
            )
            self._file.note_change(kind, key, {owner, new_owner} - {None})
        return version

    def update(self, document_type: type[D], key: str, change: Callable[[D], D]) -> D:
        """Replace a document by `change(document)` in one transaction; equal = nothing is written.

        Raises:
            NotFound: there is none.
        """
        with self.transaction():
            old = self.require(document_type, key).document
            new = change(old)
            if new != old:
                self.put(new)
        return new

    def delete(
        self, document_type: type[D], key: str, *, expected_version: int | None = None
    ) -> bool:
        """Remove; False when there was nothing. Raises Conflict as `put` does."""
        kind = document_type.kind
        with self.transaction():
            version, owner = self._check_version(kind, key, expected_version)
            if version == 0:
                return False
            self._file.execute("DELETE FROM documents WHERE kind = ? AND key = ?", (kind, key))
            self._file.note_change(kind, key, {owner} - {None})
        return True

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside are done, or none. A nested transaction joins the outermost.

        Never await inside: other tasks of the same thread would write into it.

        Raises:
            DiskFull: nothing is written.
        """
        with self._file.transaction():
            yield

    def refuse_growth(self) -> None:
        """Before something is created: the room that is left is for deletions and repairs.

        Raises:
            DiskFull: the disk is full.
        """
        reason = self.disk_low()
        if reason:
            raise DiskFull(reason)
        self._file.keep_room()

    def disk_low(self) -> str:
        """What is short and the remedy; empty while there is room."""
        reserve = self._file.reserve
        if reserve is None:
            return ""
        reserve.check()
        return reserve.shortage() if reserve.is_low else ""

    @property
    def revision(self) -> int:
        return self._file.changes.revision

    def revision_of(self, *kinds: str) -> int:
        """The newest revision that changed one of these kinds; all kinds when none is named."""
        return self._file.changes.revision_of(*kinds)

    def changed_since(self, kind: str, revision: int) -> set[str] | None:
        """Keys of documents that were written or deleted after `revision`; None: not known any
        more, everything may have changed."""
        return self._file.changes.since(kind, revision)

    def owners_changed_since(self, revision: int) -> set[str] | None:
        """The `endpoint_uid` of every document that was written or deleted after `revision`; None:
        not known any more, every one may have changed."""
        return self._file.changes.owners_since(revision)

    async def wait_for_change(self, since: int, *kinds: str, timeout_s: float) -> int:
        """`revision_of(*kinds)` as soon as it is greater than `since`, or after `timeout_s`."""
        return await self._file.changes.wait(since, *kinds, timeout_s=timeout_s)

    def _check_version(self, kind: str, key: str, expected: int | None) -> tuple[int, str | None]:
        """The version that is there, 0 for none, and the endpoint that it belongs to."""
        rows = self._file.query(
            "SELECT version, endpoint_uid FROM documents WHERE kind = ? AND key = ?", (kind, key)
        )
        found = int(rows[0][0]) if rows else 0
        owner = readable(rows[0][1]) if rows and rows[0][1] is not None else None
        if expected is not None and expected != found:
            if expected == 0:
                raise AlreadyExists(f"{kind} {key!r} exists already")
            raise Conflict(f"{kind} {key!r} is at version {found}, not {expected}: read it again")
        return found, owner

    def _decoded(self, document_type: type[D], rows: list[Row]) -> list[Stored[D]]:
        kind = document_type.kind
        decoder = _decoder(document_type)
        found, damaged = [], []
        for row, key, version, revision, digest, body in rows:
            if digest_of(kind, key, body) != digest:
                damaged.append((row, kind, key, WRONG_DIGEST))
                continue
            try:
                document = decoder.decode(unpacked(body))
            except (msgspec.MsgspecError, ValueError) as error:
                damaged.append((row, kind, key, f"it cannot be read: {error}"))
                continue
            found.append(Stored(document, int(version), int(revision)))
        self._file.set_aside(damaged)
        return found


@cache
def _decoder(document_type: type[D]) -> msgspec.json.Decoder[D]:
    return msgspec.json.Decoder(document_type)
