"""The schema and how it grows: one script per version, each applied in one transaction."""

from __future__ import annotations

import sqlite3

from zeropull.errors import ConfigurationError

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
)
SCHEMA_VERSION = len(MIGRATIONS)


def migrate(connection: sqlite3.Connection, where: str) -> None:
    """Bring the schema up to date.

    Raises:
        ConfigurationError: the file was written by a newer release.
    """
    connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
    row = connection.execute("SELECT max(version) FROM schema_version").fetchone()
    version = int(row[0] or 0)
    if version > SCHEMA_VERSION:
        raise ConfigurationError(
            f"the state in {where} has schema version {version}, but this release of zeropull "
            f"knows versions up to {SCHEMA_VERSION}: start the newer release again, or use "
            "another state directory"
        )
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
