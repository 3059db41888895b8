"""How a state file is opened and checked, and what SQLite's errors mean."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path

from zeropull.errors import Conflict, DiskFull, IntegrityError, Unavailable, ZeropullError
from zeropull.statestore.schema import migrate

BUSY_TIMEOUT_S = 5.0
MAX_FAULTS = 10


def lock_file(path: Path) -> int:
    """A descriptor that keeps every other process from opening the state at `path`.

    Raises:
        Conflict: another process has it open.
    """
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


def connect(path: Path) -> sqlite3.Connection:
    """An open connection, checked and with the newest schema. Text comes as bytes: a damaged one
    may be no UTF-8.

    Raises:
        DiskFull, Unavailable: it cannot be opened now.
        IntegrityError: the file is damaged or no database.
        ConfigurationError: a newer release wrote it.
    """
    # Created empty with the right mode: SQLite gives its -wal and -shm files the same.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    try:
        connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            connection.text_factory = bytes
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
            # Only then all of it: the indexes of the first schema cannot take every damaged body.
            _refuse_damaged(connection.execute("PRAGMA quick_check(1)").fetchall())
            migrate(connection, str(path))
            check_structure(connection)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise translated(error, path) from error
    return connection


def check_structure(connection: sqlite3.Connection) -> None:
    """The file's structure, and that every row stands in every index. Damaged indexes are made
    anew from the rows.

    Raises:
        sqlite3.DatabaseError: rows cannot be read.
    """
    check = f"PRAGMA integrity_check({MAX_FAULTS})"
    try:
        _refuse_damaged(connection.execute(check).fetchall())
    except sqlite3.DatabaseError:
        connection.execute("REINDEX")
        _refuse_damaged(connection.execute(check).fetchall())


def translated(error: sqlite3.Error, path: Path) -> ZeropullError:
    """SQLite's error as one of ours, with the remedy."""
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL:
        return disk_full(path)
    if isinstance(error, sqlite3.OperationalError) and code is not None:
        return Unavailable(f"the state in {path} cannot be used now: {error}")
    return IntegrityError(
        f"the state in {path} is damaged ({error}): restore it with `zeropull restore FILE` from a "
        "backup, or move it away and begin with an empty state by `zeropull serve --fresh-state`"
    )


def disk_full(path: Path) -> DiskFull:
    return DiskFull(
        f"the state in {path} cannot be written, the disk is full: free some of it, or delete "
        "endpoints"
    )


def _refuse_damaged(verdict: list[tuple[bytes, ...]]) -> None:
    if verdict != [(b"ok",)]:
        raise sqlite3.DatabaseError(verdict[0][0].decode(errors="replace"))
