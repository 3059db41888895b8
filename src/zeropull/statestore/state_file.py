"""The file of the state: its connection, its transactions, and the room on its disk."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from zeropull.errors import DiskFull
from zeropull.statestore.changes import ChangeLog
from zeropull.statestore.connection import connect, lock_file, translated
from zeropull.statestore.damage import find_damaged, readable, set_aside
from zeropull.statestore.reserve import DiskReserve

Row = tuple[Any, ...]
ROOM_BYTES, MIN_ROOM_BYTES = 4 << 20, 1 << 20
"""Free pages of the file: some thousand documents. Below the smaller number they are made anew."""


class StateFile:
    """Opened by one process at a time, usable from any of its threads."""

    def __init__(self, path: Path, reserve: DiskReserve | None) -> None:
        """Open it, or make it with its folder (0700, 0600). Raises as `Store.open`."""
        self.path = path
        self.reserve = reserve
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_fd = lock_file(path)
        try:
            self._connection = self._opened()
        except BaseException:
            os.close(self._lock_fd)
            raise
        self._lock = threading.RLock()
        self._depth = 0
        self._changed: dict[str, set[str]] = {}
        self._owners: set[str | None] = set()
        rows = self.query("SELECT kind, revision FROM kinds")
        self.changes = ChangeLog({readable(kind): int(revision) for kind, revision in rows})
        self.set_aside(list(find_damaged(self._connection)))
        self.keep_room()

    def close(self) -> None:
        with self._lock:
            self._connection.close()
            if self._lock_fd >= 0:
                os.close(self._lock_fd)
                self._lock_fd = -1

    def query(self, sql: str, values: Row = ()) -> list[Row]:
        with self._lock:
            return self.execute(sql, values).fetchall()

    def execute(self, sql: str, values: Row = ()) -> sqlite3.Cursor:
        """Inside a transaction of the caller, unless nothing else can be under way."""
        try:
            return self._connection.execute(sql, values)
        except sqlite3.Error as error:
            raise translated(error, self.path) from error

    def note_change(self, kind: str, key: str, owners: Iterable[str | None]) -> None:
        """Inside a transaction: a document has been written or deleted. `owners`: the endpoints
        that it belongs to and belonged to before, by uid; None when that is not known."""
        self._changed.setdefault(kind, set()).add(key)
        self._owners.update(owners)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """As `Store.transaction`."""
        with self._lock:
            if self._depth:
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                return
            if self.reserve is not None:
                self.reserve.check()
            self.execute("BEGIN IMMEDIATE")
            self._depth = 1
            try:
                yield
                self._write_revisions()
                self._commit()
            except BaseException:
                self._changed.clear()
                self._owners.clear()
                self._roll_back()
                raise
            finally:
                self._depth = 0
            changed, self._changed = self._changed, {}
            owners, self._owners = self._owners, set()
            self.changes.announce(changed, owners)

    def set_aside(self, damaged: list[tuple[int, Any, Any, str]]) -> None:
        """Move damaged documents, (row, kind, key, reason), out of the way."""
        if not damaged:
            return
        with contextlib.suppress(DiskFull), self.transaction():  # without room, the next time
            set_aside(self.execute, damaged)
            for _, kind, key, _ in damaged:
                self.note_change(readable(kind), readable(key), [None])

    def keep_room(self) -> None:
        """Have free pages in the file and in SQLite's log, which nobody else on the disk can take:
        what the reserve gives up may be taken by whoever has filled the disk."""
        if self.reserve is None or self.reserve.is_low:
            return
        with self._lock, contextlib.suppress(DiskFull):
            free = self.query("PRAGMA freelist_count")[0][0] * self.query("PRAGMA page_size")[0][0]
            if free >= MIN_ROOM_BYTES or self._depth:
                return
            # Committed in between: pages that are made and freed at once are holes on the disk.
            with self.transaction():
                self.execute("CREATE TABLE room (bytes BLOB)")
                self.execute("INSERT INTO room VALUES (zeroblob(?))", (ROOM_BYTES,))
            with self.transaction():
                self.execute("DROP TABLE room")
            self.query("PRAGMA wal_checkpoint(PASSIVE)")

    def _opened(self) -> sqlite3.Connection:
        if self.reserve is not None:
            self.reserve.check()
        try:
            return connect(self.path)
        except Exception:
            if self.reserve is None or not self.reserve.give_up():
                raise
            return connect(self.path)

    def _write_revisions(self) -> None:
        for kind in self._changed:
            self.execute(
                "INSERT INTO kinds VALUES (?, ?)"
                " ON CONFLICT (kind) DO UPDATE SET revision = excluded.revision",
                (kind, self.changes.revision + 1),
            )

    def _commit(self) -> None:
        try:
            self.execute("COMMIT")
        except DiskFull:
            if self.reserve is None or not self.reserve.give_up():
                raise
            if not self._connection.in_transaction:
                raise  # SQLite has taken it back by itself
            self.execute("COMMIT")

    def _roll_back(self) -> None:
        """A transaction that cannot be taken back must not stay open: a new connection has none."""
        if not self._connection.in_transaction:
            return
        try:
            self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._connection.close()
            self._connection = connect(self.path)
