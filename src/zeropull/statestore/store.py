"""A typed document store in one SQLite file, with transactions and change notification.

Writes are on disk (fsync) when the call, or the outermost transaction, returns; a process killed at
any point leaves the state before or after a transaction, never in between. Calls are synchronous
and short: a read is microseconds, a commit one fsync. https://www.sqlite.org/wal.html
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import msgspec

from zeropull.errors import AlreadyExists, Conflict, DiskFull, IntegrityError, NotFound, Unavailable
from zeropull.resources.documents import Document
from zeropull.statestore.schema import migrate

BUSY_TIMEOUT_S = 5.0
_FIELD = re.compile(r"[a-z_]+")

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

    def __init__(self, connection: sqlite3.Connection, lock_fd: int, path: Path) -> None:
        self.path = path
        self._connection = connection
        self._lock_fd = lock_fd
        self._lock = threading.RLock()
        self._depth = 0
        self._changed: set[str] = set()
        self._waiters: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        rows = connection.execute("SELECT kind, revision FROM kinds").fetchall()
        self._revisions: dict[str, int] = {str(kind): int(revision) for kind, revision in rows}
        self._revision = max(self._revisions.values(), default=0)

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open the file, or make it with its folder (0700, 0600).

        Raises:
            Conflict: another process has it open.
            IntegrityError: the file is damaged or no database.
            ConfigurationError: a newer release wrote it.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_fd = _lock_file(path)
        try:
            # Created empty with the right mode: SQLite gives its -wal and -shm files the same.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            connection = _connect(path)
        except BaseException:
            os.close(lock_fd)
            raise
        return cls(connection, lock_fd, path)

    def close(self) -> None:
        with self._lock:
            self._connection.close()
            if self._lock_fd >= 0:
                os.close(self._lock_fd)
                self._lock_fd = -1

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
        rows = self._query(
            "SELECT key, version, revision, body FROM documents WHERE kind = ? AND key = ?",
            (document_type.kind, key),
        )
        return _stored(document_type, rows[0]) if rows else None

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

        `endpoint_uid=` and `instance_id=` are indexed.
        """
        sql = "SELECT key, version, revision, body FROM documents WHERE kind = ?"
        values: list[str | int | float] = [document_type.kind]
        if prefix:
            sql += " AND key >= ? AND key < ?"
            values += [prefix, prefix + "\U0010ffff"]
        for name, value in where.items():
            assert _FIELD.fullmatch(name), name
            sql += f" AND json_extract(body, '$.{name}') = ?"
            values.append(value)
        rows = self._query(sql + " ORDER BY key", tuple(values))
        return [_stored(document_type, row) for row in rows]

    def put(self, document: Document, *, expected_version: int | None = None) -> int:
        """Create or replace; returns the new version.

        `expected_version`: None = whatever is there, 0 = nothing may be there.

        Raises:
            AlreadyExists: 0 was expected, and there is one.
            Conflict: another version is there, or none.
        """
        kind, key = type(document).kind, document.key
        body = msgspec.json.encode(document).decode()
        with self.transaction():
            version = self._check_version(kind, key, expected_version) + 1
            self._execute(
                "INSERT INTO documents (kind, key, version, revision, body) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (kind, key) DO UPDATE SET version = excluded.version,"
                " revision = excluded.revision, body = excluded.body",
                (kind, key, version, self._revision + 1, body),
            )
            self._changed.add(kind)
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
            if self._check_version(kind, key, expected_version) == 0:
                return False
            self._execute("DELETE FROM documents WHERE kind = ? AND key = ?", (kind, key))
            self._changed.add(kind)
        return True

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing of what is written inside; nested ones join the outermost.

        Never await inside: other tasks of the same thread would write into it.
        """
        with self._lock:
            if self._depth:
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                return
            self._execute("BEGIN IMMEDIATE")
            self._depth = 1
            try:
                yield
                self._write_revisions()
                self._execute("COMMIT")
            except BaseException:
                self._changed.clear()
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            finally:
                self._depth = 0
            self._announce()

    @property
    def revision(self) -> int:
        return self._revision

    def revision_of(self, *kinds: str) -> int:
        """The newest revision that changed one of these kinds; all kinds when none is named."""
        if not kinds:
            return self._revision
        return max(self._revisions.get(kind, 0) for kind in kinds)

    async def wait_for_change(self, since: int, *kinds: str, timeout_s: float) -> int:
        """`revision_of(*kinds)` as soon as it is greater than `since`, or after `timeout_s`."""
        event = asyncio.Event()
        waiter = (asyncio.get_running_loop(), event)
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                while self.revision_of(*kinds) <= since:
                    await event.wait()
                    event.clear()
        except TimeoutError:
            pass
        finally:
            self._waiters.discard(waiter)
        return self.revision_of(*kinds)

    def _check_version(self, kind: str, key: str, expected: int | None) -> int:
        rows = self._query("SELECT version FROM documents WHERE kind = ? AND key = ?", (kind, key))
        found = int(rows[0][0]) if rows else 0
        if expected is not None and expected != found:
            if expected == 0:
                raise AlreadyExists(f"{kind} {key!r} exists already")
            raise Conflict(f"{kind} {key!r} is at version {found}, not {expected}: read it again")
        return found

    def _write_revisions(self) -> None:
        for kind in self._changed:
            self._execute(
                "INSERT INTO kinds VALUES (?, ?)"
                " ON CONFLICT (kind) DO UPDATE SET revision = excluded.revision",
                (kind, self._revision + 1),
            )

    def _announce(self) -> None:
        if not self._changed:
            return
        self._revision += 1
        self._revisions.update(dict.fromkeys(self._changed, self._revision))
        self._changed.clear()
        for loop, event in list(self._waiters):
            with contextlib.suppress(RuntimeError):  # that loop has been closed meanwhile
                loop.call_soon_threadsafe(event.set)

    def _query(self, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._execute(sql, values).fetchall()

    def _execute(self, sql: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._connection.execute(sql, values)
        except sqlite3.Error as error:
            raise _translated(error, self.path) from error


def _lock_file(path: Path) -> int:
    lock_path = path.with_name(path.name + ".lock")
    fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise Conflict(
            f"the state in {path} is in use by another zeropull: stop it first, or use another "
            "state directory"
        ) from error
    return fd


def _connect(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
            verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            migrate(connection, str(path))
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise _translated(error, path) from error
    return connection


def _translated(error: sqlite3.Error, path: Path) -> Exception:
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL:
        return DiskFull(f"the state in {path} cannot be written: the disk is full")
    if isinstance(error, sqlite3.OperationalError) and code is not None:
        return Unavailable(f"the state in {path} cannot be used now: {error}")
    return IntegrityError(
        f"the state in {path} is damaged ({error}): restore it from a backup, or move it away to "
        "begin with an empty state"
    )


@cache
def _decoder(document_type: type[D]) -> msgspec.json.Decoder[D]:
    return msgspec.json.Decoder(document_type)


def _stored(document_type: type[D], row: tuple[Any, ...]) -> Stored[D]:
    key, version, revision, body = row
    try:
        document = _decoder(document_type).decode(body)
    except msgspec.MsgspecError as error:
        raise IntegrityError(
            f"the stored {document_type.kind} {key!r} is not readable: {error}"
        ) from error
    return Stored(document, int(version), int(revision))
