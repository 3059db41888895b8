"""The schema and how it grows: one script per version, each applied in one transaction."""

from __future__ import annotations

import sqlite3

from zeropull.errors import ConfigurationError
from zeropull.statestore.digests import digest_of

APPLICATION_ID = 0x7A70756C  # "zpul": tells a state from any other SQLite file

# Script i brings the schema from version i to i + 1. Scripts never change once released.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE documents (
            kind TEXT NOT NULL, key TEXT NOT NULL,
            version INTEGER NOT NULL, revision INTEGER NOT NULL, body TEXT NOT NULL,
            PRIMARY KEY (kind, key)) WITHOUT ROWID""",
        """CREATE INDEX documents_endpoint ON documents
            (kind, json_extract(body, '$.endpoint_uid'))""",
        """CREATE INDEX documents_instance ON documents
            (kind, json_extract(body, '$.instance_id'))""",
        # The newest revision of every kind: deletions count, and leave no row behind.
        "CREATE TABLE kinds (kind TEXT PRIMARY KEY, revision INTEGER NOT NULL) WITHOUT ROWID",
    ),
    (
        # What is indexed are columns: an index over an expression cannot let go of a row whose
        # body is no JSON any more. `digest_of` is a function of ours.
        "ALTER TABLE documents RENAME TO documents_1",
        """CREATE TABLE documents (
            kind TEXT NOT NULL, key TEXT NOT NULL,
            version INTEGER NOT NULL, revision INTEGER NOT NULL,
            endpoint_uid TEXT, instance_id TEXT, digest BLOB NOT NULL, body BLOB NOT NULL)""",
        """INSERT INTO documents SELECT kind, key, version, revision,
            CASE WHEN json_valid(body) THEN json_extract(body, '$.endpoint_uid') END,
            CASE WHEN json_valid(body) THEN json_extract(body, '$.instance_id') END,
            digest_of(kind, CAST(key AS BLOB), CAST(body AS BLOB)), CAST(body AS BLOB)
            FROM documents_1""",
        "DROP TABLE documents_1",
        "CREATE UNIQUE INDEX documents_key ON documents (kind, key)",
        """CREATE INDEX documents_endpoint ON documents (endpoint_uid, kind)
            WHERE endpoint_uid IS NOT NULL""",
        """CREATE INDEX documents_instance ON documents (instance_id, kind)
            WHERE instance_id IS NOT NULL""",
        # Documents that are damaged, as they were found.
        """CREATE TABLE set_aside (
            kind TEXT NOT NULL, key TEXT NOT NULL, version INTEGER, revision INTEGER,
            digest BLOB, body BLOB, reason TEXT NOT NULL, found_s INTEGER NOT NULL)""",
        f"PRAGMA application_id = {APPLICATION_ID}",
    ),
)
SCHEMA_VERSION = len(MIGRATIONS)


def migrate(connection: sqlite3.Connection, where: str) -> None:
    """Bring the schema up to date.

    Raises:
        ConfigurationError: the file was written by a newer release.
    """
    connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
    version = schema_version(connection)
    refuse_newer(version, where)
    connection.create_function("digest_of", 3, _digest_of, deterministic=True)
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in script:
                connection.execute(statement)
            connection.execute("DELETE FROM schema_version")
            connection.execute("INSERT INTO schema_version VALUES (?)", (number,))
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise


def schema_version(connection: sqlite3.Connection) -> int:
    """0 for a file without documents."""
    row = connection.execute("SELECT max(version) FROM schema_version").fetchone()
    return int(row[0] or 0)


def refuse_newer(version: int, where: str) -> None:
    if version > SCHEMA_VERSION:
        raise ConfigurationError(
            f"the state in {where} has schema version {version}, but this release of zeropull "
            f"knows versions up to {SCHEMA_VERSION}: start the newer release again, or use "
            "another state directory"
        )


def _digest_of(kind: bytes | str, key: bytes, body: bytes) -> bytes:
    return digest_of(kind if isinstance(kind, str) else kind.decode(), key, body)
