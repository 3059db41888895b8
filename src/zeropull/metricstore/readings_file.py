"""The SQLite file of readings: made anew when it is damaged, in memory when there is no room.

Readings are no state: a server without those of before serves as well. What is damaged is kept
beside the new file, as `NAME.damaged-TIME`.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zeropull.errors import ConfigurationError, DiskFull, Unavailable, ZeropullError
from zeropull.telemetry import get_logger

SCHEMA_VERSION = 1
MAX_LOG_PAGES = 20_000
SIDE_FILES = ("", "-wal", "-shm")
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SCHEMA = """
CREATE TABLE series (
  id INTEGER PRIMARY KEY, account TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
  dimensions TEXT NOT NULL, unit TEXT NOT NULL, newest INTEGER NOT NULL DEFAULT 0,
  UNIQUE (account, namespace, name, dimensions, unit)
);
CREATE TABLE points (
  series INTEGER NOT NULL, resolution INTEGER NOT NULL, start INTEGER NOT NULL,
  count REAL NOT NULL, total REAL NOT NULL, least REAL NOT NULL, most REAL NOT NULL, sketch BLOB,
  PRIMARY KEY (series, resolution, start)
) WITHOUT ROWID;
"""

Row = tuple[Any, ...]

log = get_logger(__name__)


class ReadingsFile:
    """One connection that writes, used by one thread at a time, and one that reads per thread."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            ConfigurationError: a newer release wrote it.
        """
        self._path = path
        self._in_memory = False
        self._readers = threading.local()
        self._generation = 0  # of the file: readers of an earlier one are of no use
        try:
            self.db = self._opened()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            self.db = self._begun_anew(error)

    def close(self) -> None:
        self.db.close()

    def reader(self) -> sqlite3.Connection:
        """This thread's own connection: a long answer keeps nobody from writing."""
        if self._in_memory:
            return self.db
        known: tuple[int, sqlite3.Connection] | None = getattr(self._readers, "known", None)
        if known is None or known[0] != self._generation:
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            known = self._readers.known = (self._generation, connection)
        return known[1]

    @property
    def reads_beside_writer(self) -> bool:
        return not self._in_memory

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; one inside another joins it."""
        if self.db.in_transaction:
            yield self.db
            return
        self.db.execute("BEGIN")
        try:
            yield self.db
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:
                with contextlib.suppress(sqlite3.Error):  # on a full disk that may fail as well
                    self.db.execute("ROLLBACK")
            raise

    def begin_anew(self, error: Exception) -> None:
        """The file turned out to be damaged: what it held is gone for the server."""
        with contextlib.suppress(sqlite3.Error):
            self.db.close()
        self._generation += 1
        self.db = self._begun_anew(error)

    def translated(self, error: sqlite3.Error) -> ZeropullError:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return DiskFull(f"readings cannot be kept in {self._path}: the disk is full")
        return Unavailable(f"the readings in {self._path} cannot be used now: {error}")

    def _opened(self) -> sqlite3.Connection:
        try:
            # What endpoints do is nobody else's business; the files beside it get the same mode.
            self._path.touch(mode=0o600)
            for file in self._path.parent.glob(f"{self._path.name}*"):
                file.chmod(0o600)
            return self._prepared(str(self._path))
        except (OSError, sqlite3.OperationalError) as error:
            log.error("readings are not kept", path=str(self._path), error=str(error))
            self._in_memory = True
            return self._prepared(":memory:")

    def _prepared(self, name: str) -> sqlite3.Connection:
        db = sqlite3.connect(name, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            # `checkpoint` is called long before: within a commit it would make everybody wait.
            db.execute(f"PRAGMA wal_autocheckpoint={MAX_LOG_PAGES}")
            version = int(db.execute("PRAGMA user_version").fetchone()[0])
            if version > SCHEMA_VERSION:
                raise ConfigurationError(
                    f"{name} has schema version {version}, this zeropull knows {SCHEMA_VERSION}: "
                    "start the newer zeropull that wrote it"
                )
            if version == 0:
                db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version={SCHEMA_VERSION};COMMIT;")
            db.execute("SELECT count(*) FROM series").fetchone()
        except BaseException:
            db.close()
            raise
        return db

    def _begun_anew(self, error: Exception) -> sqlite3.Connection:
        moment = time.strftime("%Y%m%dT%H%M%S")
        log.error(
            "readings are damaged and begin anew",
            path=str(self._path),
            kept_as=f"{self._path.name}.damaged-{moment}",
            error=str(error),
        )
        for suffix in SIDE_FILES:
            old = self._path.with_name(self._path.name + suffix)
            new = self._path.with_name(f"{self._path.name}.damaged-{moment}{suffix}")
            try:
                old.rename(new)
            except FileNotFoundError:
                continue
            except OSError:
                old.unlink(missing_ok=True)
        return self._opened()


def is_damage(error: sqlite3.Error) -> bool:
    """The file's bytes are wrong; not a full disk or one that does not answer."""
    code = getattr(error, "sqlite_errorcode", None)
    # No such table, and the like: the schema itself is damaged.
    is_schema = code == sqlite3.SQLITE_ERROR and "no such" in str(error)
    return is_schema or (code is not None and code & 0xFF in _DAMAGE)
