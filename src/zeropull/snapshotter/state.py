"""Which snapshots there are: a SQLite file that survives a kill at any moment.

Every change is one transaction, on the disk before the method returns (write-ahead log,
synchronous=FULL). What lies in directories and mounts follows from the rows, never the reverse.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zeropull.containerd.snapshots import SnapshotInfo, SnapshotKind, SnapshotUsage
from zeropull.errors import AlreadyExists, ConfigurationError, Conflict, InvalidInput, NotFound

SCHEMA_VERSION = 2

# AUTOINCREMENT: an ID is also the name of a directory and of a mount point, so it is never used
# again for another snapshot.
_SCHEMA = """
CREATE TABLE snapshots (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    name       TEXT NOT NULL UNIQUE,
    parent     TEXT NOT NULL,
    kind       TEXT NOT NULL,
    labels     TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL,
    layer      TEXT,
    size_bytes INTEGER,
    inodes     INTEGER
) STRICT;
CREATE INDEX snapshots_by_parent ON snapshots (parent);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""

# `chain`: the numbers of a whole image's layers as JSON, the uppermost first. Images share rows of
# `layers`, and so mounts; a row lives as long as a snapshot names it.
_WHOLE_IMAGES = """
ALTER TABLE snapshots ADD COLUMN chain TEXT;
CREATE TABLE layers (
    number   INTEGER PRIMARY KEY AUTOINCREMENT,
    chain_id TEXT NOT NULL,
    path     TEXT NOT NULL,
    identity TEXT NOT NULL,
    UNIQUE (path, identity)
) STRICT;
"""

_COLUMNS = (
    "id, name, parent, kind, labels, created_ns, updated_ns, layer, size_bytes, inodes, chain"
)

_ANCESTRY = f"""
WITH RECURSIVE line(depth, at) AS (
    SELECT 0, :name
    UNION ALL
    SELECT depth + 1, parent FROM line JOIN snapshots ON name = at WHERE parent != ''
)
SELECT {_COLUMNS} FROM line JOIN snapshots ON name = at ORDER BY depth
"""  # noqa: S608 # no value of anyone's stands in it


@dataclass(frozen=True, slots=True)
class SharedLayer:
    """A layer that whole images have in common. `identity` tells two layers apart that were in the
    same directory one after the other."""

    number: int
    chain_id: str
    path: Path
    identity: str


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """`layer` is the layer directory of a snapshot that is served from the cache, else None.
    `chain`: the shared layers of one that stands for a whole image, the uppermost first.
    `usage` None = not measured yet."""

    id: int
    info: SnapshotInfo
    layer: Path | None = None
    usage: SnapshotUsage | None = None
    chain: tuple[int, ...] = ()


class SnapshotState:
    """All rows; one thread at a time changes them, under `transaction`.

    Each thread reads through a connection of its own, which never waits for the writer's fsync: it
    sees what was committed. Inside its own transaction a thread reads what it has written so far.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._path = path
        self._of_thread = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._writing_thread: int | None = None
        # Statements run in autocommit mode; `transaction` alone says where one begins and ends.
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._database.executescript(
                f"BEGIN;{_SCHEMA}{_WHOLE_IMAGES}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;"
            )
        elif version == 1:
            self._database.executescript(
                f"BEGIN;{_WHOLE_IMAGES}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;"
            )
        elif version != SCHEMA_VERSION:
            self._database.close()
            raise ConfigurationError(
                f"{path} has schema version {version}, this version reads {SCHEMA_VERSION}"
            )

    def close(self) -> None:
        with self._lock:
            for reader in self._readers:
                reader.close()
            self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that the block does becomes durable at its end, or nothing of it. Not nested."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            self._writing_thread = threading.get_ident()
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
            finally:
                self._writing_thread = None

    def get(self, name: str) -> SnapshotRecord:
        """Raises:
        NotFound: there is no such snapshot.
        """
        record = self.find(name)
        if record is None:
            raise NotFound(f"snapshot {name} does not exist")
        return record

    def find(self, name: str) -> SnapshotRecord | None:
        row = (
            self._reader()
            .execute(
                f"SELECT {_COLUMNS} FROM snapshots WHERE name = ?",  # noqa: S608 # constants
                (name,),
            )
            .fetchone()
        )
        return None if row is None else _record(row)

    def all(self) -> list[SnapshotRecord]:
        query = f"SELECT {_COLUMNS} FROM snapshots ORDER BY id"  # noqa: S608 # constants
        rows = self._reader().execute(query).fetchall()
        return [_record(row) for row in rows]

    def labelled(self, text: str) -> list[SnapshotRecord]:
        """Those that have `text` somewhere in their labels, for which JSON must not escape it."""
        query = (
            f"SELECT {_COLUMNS} FROM snapshots"  # noqa: S608 # constants
            " WHERE instr(labels, ?) ORDER BY id"
        )
        rows = self._reader().execute(query, (text,)).fetchall()
        return [_record(row) for row in rows]

    def ancestry(self, name: str) -> list[SnapshotRecord]:
        """The snapshot `name`, its parent, and so on down to the lowest; [] for ""."""
        rows = self._reader().execute(_ANCESTRY, {"name": name}).fetchall()
        return [_record(row) for row in rows]

    def has_children(self, name: str) -> bool:
        query = "SELECT 1 FROM snapshots WHERE parent = ? LIMIT 1"
        row = self._reader().execute(query, (name,)).fetchone()
        return row is not None

    def insert(
        self, info: SnapshotInfo, layer: Path | None = None, chain: Sequence[int] = ()
    ) -> int:
        """Add a snapshot over a committed parent; returns its ID.

        Raises:
            AlreadyExists: the name is taken.
            NotFound: there is no such parent.
            InvalidInput: the parent is not committed.
        """
        if info.parent:
            self._check_parent(info.parent)
        try:
            cursor = self._database.execute(
                "INSERT INTO snapshots"
                " (name, parent, kind, labels, created_ns, updated_ns, layer, chain)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    info.name,
                    info.parent,
                    info.kind.value,
                    _encode(info.labels),
                    info.created_ns,
                    info.updated_ns,
                    None if layer is None else str(layer),
                    json.dumps(chain) if chain else None,
                ),
            )
        except sqlite3.IntegrityError:
            raise AlreadyExists(f"snapshot {info.name} exists") from None
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def commit(self, key: str, name: str, labels: Mapping[str, str], now_ns: int) -> None:
        """Turn an active snapshot into a committed one; labels are replaced, not inherited.

        Raises:
            NotFound: there is no snapshot `key`.
            Conflict: it is not active.
            AlreadyExists: `name` is taken.
        """
        record = self.get(key)
        if record.info.kind is not SnapshotKind.ACTIVE:
            raise Conflict(f"snapshot {key} is {record.info.kind}, not active")
        try:
            self._database.execute(
                "UPDATE snapshots SET name = ?, kind = ?, labels = ?, created_ns = ?,"
                " updated_ns = ? WHERE id = ?",
                (
                    name,
                    SnapshotKind.COMMITTED.value,
                    _encode(labels),
                    now_ns,
                    now_ns,
                    record.id,
                ),
            )
        except sqlite3.IntegrityError:
            raise AlreadyExists(f"snapshot {name} exists") from None

    def rebase(self, snapshot_id: int, parent: str) -> None:
        """Put a snapshot that has no parent over a committed one.

        Raises:
            NotFound: there is no such parent.
            InvalidInput: the parent is not committed.
        """
        self._check_parent(parent)
        self._database.execute(
            "UPDATE snapshots SET parent = ? WHERE id = ?", (parent, snapshot_id)
        )

    def set_labels(self, name: str, labels: Mapping[str, str], now_ns: int) -> SnapshotInfo:
        """Replace all labels; those with an empty value go. Raises NotFound."""
        record = self.get(name)
        self._database.execute(
            "UPDATE snapshots SET labels = ?, updated_ns = ? WHERE id = ?",
            (_encode(labels), now_ns, record.id),
        )
        return self.get(name).info

    def set_usage(self, snapshot_id: int, usage: SnapshotUsage) -> None:
        """A measured usage of a committed snapshot: it never changes again."""
        self._database.execute(
            "UPDATE snapshots SET size_bytes = ?, inodes = ? WHERE id = ?",
            (usage.size_bytes, usage.inodes, snapshot_id),
        )

    def delete(self, name: str) -> SnapshotRecord:
        """Raises:
        NotFound: there is no such snapshot.
        Conflict: another one lies over it.
        """
        record = self.get(name)
        if self.has_children(name):
            raise Conflict(f"cannot remove snapshot {name}: another one lies over it")
        self._database.execute("DELETE FROM snapshots WHERE id = ?", (record.id,))
        return record

    def share_layer(self, chain_id: str, path: Path, identity: str) -> int:
        """The number of a layer that is known or becomes so now."""
        key = (str(path), identity)
        self._database.execute(
            "INSERT OR IGNORE INTO layers (chain_id, path, identity) VALUES (?, ?, ?)",
            (chain_id, *key),
        )
        row = self._database.execute(
            "SELECT number FROM layers WHERE path = ? AND identity = ?", key
        ).fetchone()
        return int(row[0])

    def shared_layers(self) -> dict[int, SharedLayer]:
        """All of them by number."""
        query = "SELECT number, chain_id, path, identity FROM layers"
        rows = self._reader().execute(query).fetchall()
        return {row[0]: SharedLayer(row[0], row[1], Path(row[2]), row[3]) for row in rows}

    def forget_unshared_layers(self) -> list[int]:
        """Those that no snapshot names any more; their numbers."""
        rows = self._database.execute(
            "DELETE FROM layers WHERE number NOT IN"
            " (SELECT value FROM snapshots, json_each(snapshots.chain)) RETURNING number"
        ).fetchall()
        return [int(row[0]) for row in rows]

    def fact(self, name: str) -> str | None:
        query = "SELECT value FROM facts WHERE name = ?"
        row = self._reader().execute(query, (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_fact(self, name: str, value: str) -> None:
        self._database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def _check_parent(self, name: str) -> None:
        kind = self.get(name).info.kind
        if kind is not SnapshotKind.COMMITTED:
            raise InvalidInput(f"parent {name} is {kind}, not committed")

    def _reader(self) -> sqlite3.Connection:
        if self._writing_thread == threading.get_ident():
            return self._database
        reader: sqlite3.Connection | None = getattr(self._of_thread, "reader", None)
        if reader is None:
            reader = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
            reader.execute("PRAGMA query_only = ON")
            self._of_thread.reader = reader
            self._readers.append(reader)  # one step of the interpreter: no lock is needed
        return reader


_Row = tuple[int, str, str, str, str, int, int, str | None, int | None, int | None, str | None]


def _record(row: _Row) -> SnapshotRecord:
    snapshot_id, name, parent, kind, labels, created_ns, updated_ns, layer, size, inodes, chain = (
        row
    )
    return SnapshotRecord(
        id=snapshot_id,
        info=SnapshotInfo(
            name=name,
            parent=parent,
            kind=SnapshotKind(kind),
            labels=json.loads(labels),
            created_ns=created_ns,
            updated_ns=updated_ns,
        ),
        layer=None if layer is None else Path(layer),
        usage=None if size is None or inodes is None else SnapshotUsage(size, inodes),
        chain=() if chain is None else tuple(json.loads(chain)),
    )


def _encode(labels: Mapping[str, str]) -> str:
    return json.dumps({key: value for key, value in labels.items() if value})
