"""State of earlier releases opens, whole or not."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest

from zeropull.resources.documents import Document
from zeropull.resources.instances import Instance, InstanceState
from zeropull.resources.tags import ResourceTags
from zeropull.statestore import Store
from zeropull.statestore.schema import MIGRATIONS, SCHEMA_VERSION

INSTANCE = Instance(
    "i-1", "000000000001", "u" * 32, "ep", "main", "ml.m5.large", "d", InstanceState.RUNNING,
    node_token="t", created_s=1.0,
)  # fmt: skip
TAGS = ResourceTags("arn:a", {"é": "1"})


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """As 0.1.0 wrote it."""
    path = tmp_path / "zeropull.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE schema_version (version INTEGER NOT NULL)")
    for statement in MIGRATIONS[0]:
        connection.execute(statement)
    connection.execute("INSERT INTO schema_version VALUES (1)")
    documents: tuple[Document, ...] = (INSTANCE, TAGS)
    for number, document in enumerate(documents, start=1):
        connection.execute(
            "INSERT INTO documents VALUES (?, ?, ?, ?, ?)",
            (document.kind, document.key, 3, number, msgspec.json.encode(document).decode()),
        )
        connection.execute("INSERT INTO kinds VALUES (?, ?)", (document.kind, number))
    connection.close()
    return path


def test_state_of_the_first_release_opens(first: Path) -> None:
    with Store.open(first) as store:
        found = store.require(Instance, "i-1")
        assert (found.document, found.version, found.revision) == (INSTANCE, 3, 1)
        assert store.require(ResourceTags, "arn:a").document == TAGS
        assert [s.document for s in store.select(Instance, endpoint_uid="u" * 32)] == [INSTANCE]
        assert store.revision == 2
        assert store.put(TAGS) == 4
        assert store.revision == 3
    connection = sqlite3.connect(first)
    assert connection.execute("SELECT version FROM schema_version").fetchall() == [
        (SCHEMA_VERSION,)
    ]
    connection.close()


def test_a_document_of_the_first_release_that_is_no_json_is_set_aside(first: Path) -> None:
    data = first.read_bytes()
    first.write_bytes(data.replace(b'{"instance_id":"i-1"', b'\x07"instance_id":"i-1"'))
    with Store.open(first) as store:
        assert store.get(Instance, "i-1") is None
        assert store.select(Instance, endpoint_uid="u" * 32) == []
        assert store.require(ResourceTags, "arn:a").document == TAGS
        assert [each.key for each in store.damaged()] == ["i-1"]


def test_what_is_looked_up_by_endpoint_is_found_by_its_index(tmp_path: Path) -> None:
    with Store.open(tmp_path / "zeropull.db") as store:
        seen: list[str] = []
        store._file._connection.set_trace_callback(seen.append)
        store.select(Instance, endpoint_uid="u" * 32)
        store.select(Instance, instance_id="i-1")
        store._file._connection.set_trace_callback(None)
        for sql, index in zip(seen, ("documents_endpoint", "documents_instance"), strict=True):
            plan = store._file._connection.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall()
            assert index.encode() in plan[0][3], plan
