"""Backups of the state: one SQLite file, made while the state is in use, checked before it is used.

It holds every document: accounts and keys, models, endpoints and what serves them, records of image
caches, scaling, alarms, timelines. It does not hold readings of metrics, files of image caches,
instances' disks and the configuration file. https://www.sqlite.org/backup.html
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zeropull.errors import AlreadyExists, IntegrityError, NotFound, ZeropullError
from zeropull.linux.files import sync_folder
from zeropull.statestore.connection import connect, lock_file, translated
from zeropull.statestore.damage import find_damaged, readable
from zeropull.statestore.schema import refuse_newer, schema_version

SIDE_FILES = ("", "-wal", "-shm")


@dataclass(frozen=True, slots=True)
class BackupContent:
    """`documents` are whole; `damaged` are those that were left out."""

    documents: int
    damaged: int
    size_bytes: int


def back_up(database: Path, target: Path) -> BackupContent:
    """Write the state in `database` to the new file `target` (0600), also while a server uses it.

    Raises:
        NotFound: there is no state.
        AlreadyExists: there is a file of that name.
        IntegrityError: the state cannot be read.
        ZeropullError: `target` cannot be written.
    """
    if not database.exists():
        raise NotFound(f"there is no state in {database}")
    if target.exists():
        raise AlreadyExists(f"{target} exists already: name another file, or remove it")
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with _removed(temporary):
            os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600))
            _copy(database, temporary)
            content = _clean(temporary)
            temporary.rename(target)
            sync_folder(target.parent)
    except OSError as error:
        raise ZeropullError(f"the backup {target} cannot be written: {error.strerror}") from error
    return content


def restore(source: Path, database: Path, time_text: str) -> BackupContent:
    """Put the backup `source` in the place of the state. The state of before is kept beside it, as
    `NAME.replaced-TIME`.

    Raises:
        NotFound: there is no such file.
        Conflict: a server uses the state.
        IntegrityError: the backup is damaged, or no backup; nothing is changed.
        ConfigurationError: a newer release wrote it; nothing is changed.
        ZeropullError: the state cannot be written.
    """
    if not source.is_file():
        raise NotFound(f"there is no backup {source}")
    database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock_fd = lock_file(database)
    temporary = database.with_name(f".{database.name}.tmp")
    try:
        with _removed(temporary):
            os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600))
            shutil.copyfile(source, temporary)
            content = _checked(temporary, source)
            for suffix in reversed(SIDE_FILES):
                with contextlib.suppress(FileNotFoundError):
                    name = database.name
                    old = database.with_name(f"{name}{suffix}")
                    old.rename(database.with_name(f"{name}.replaced-{time_text}{suffix}"))
            temporary.rename(database)
            sync_folder(database.parent)
    except OSError as error:
        raise ZeropullError(f"the state {database} cannot be written: {error.strerror}") from error
    finally:
        os.close(lock_fd)
    return content


@contextlib.contextmanager
def _removed(temporary: Path) -> Iterator[None]:
    try:
        yield
    finally:
        for suffix in SIDE_FILES:
            temporary.with_name(f"{temporary.name}{suffix}").unlink(missing_ok=True)


def _copy(database: Path, target: Path) -> None:
    try:
        source = sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True)
        with contextlib.closing(source), contextlib.closing(sqlite3.connect(target)) as copy:
            source.backup(copy)
    except sqlite3.Error as error:
        raise translated(error, database) from error


def _clean(path: Path) -> BackupContent:
    """With the newest schema, without damaged documents, and one file, which is synced."""
    connection = connect(path)
    with contextlib.closing(connection):
        damaged = list(find_damaged(connection))
        connection.execute("BEGIN")
        connection.executemany("DELETE FROM documents WHERE rowid = ?", [d[:1] for d in damaged])
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = DELETE")
        count = int(connection.execute("SELECT count(*) FROM documents").fetchone()[0])
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return BackupContent(count, len(damaged), path.stat().st_size)


def _checked(path: Path, source: Path) -> BackupContent:
    """Of a backup that is whole; with the newest schema after that.

    Raises:
        IntegrityError: it is not.
    """
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            refuse_newer(schema_version(connection), str(source))
    except sqlite3.Error as error:
        raise IntegrityError(f"{source} is no backup of zeropull, or damaged: {error}") from error
    try:
        connection = connect(path)
    except IntegrityError as error:
        cause = error.__cause__
        raise IntegrityError(f"the backup {source} is damaged ({cause}): take another") from error
    with contextlib.closing(connection):
        damaged = [f"{readable(d[1])} {readable(d[2])!r}" for d in find_damaged(connection)]
        connection.execute("PRAGMA journal_mode = DELETE")
        count = int(connection.execute("SELECT count(*) FROM documents").fetchone()[0])
    if damaged:
        raise IntegrityError(
            f"the backup {source} is damaged: {', '.join(damaged[:5])} are not as they were "
            "written: take another"
        )
    return BackupContent(count, 0, path.stat().st_size)
