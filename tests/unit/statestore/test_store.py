"""The document store."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zeropull.errors import (
    AlreadyExists,
    ConfigurationError,
    Conflict,
    IntegrityError,
    NotFound,
)
from zeropull.resources.accounts import Account
from zeropull.resources.endpoint_configs import UpdatePolicy, VariantSpec
from zeropull.resources.endpoints import Deployment, Endpoint, EndpointStatus, Variant
from zeropull.resources.instances import TimelineRecord
from zeropull.resources.stages import Stage, StageRecord
from zeropull.resources.tags import ResourceTags
from zeropull.statestore import Store
from zeropull.statestore.changes import KEPT


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "s" / "zeropull.db") as opened:
        yield opened


def account(name: str = "one") -> Account:
    return Account("000000000001", name, 1.5)


def endpoint(name: str = "Ep") -> Endpoint:
    variant = Variant(VariantSpec("v1", "ml.m5.large", model_name="m"), 2, 1.0)
    deployment = Deployment("config", (variant,), 10.25, policy=UpdatePolicy())
    return Endpoint(
        account="000000000001",
        name=name,
        arn="arn:x",
        uid="ab" * 16,
        status=EndpointStatus.CREATING,
        created_s=1.0,
        modified_s=1.0,
        pending=deployment,
    )


def test_what_is_put_is_read_back_equal(store: Store) -> None:
    record = TimelineRecord(
        "c-1", "i-1", "0", "uid", "ep", "v", "d", "t", 1.0,
        stages=(StageRecord(Stage.IMAGE, 1.0, 2.0, {"registry": 0}, 8, 8, "cached"),),
    )  # fmt: skip
    for document in (account(), endpoint(), record, ResourceTags("arn", {"b": "1", "a": "2"})):
        assert store.put(document) == 1
        found = store.get(type(document), document.key)
        assert found is not None
        assert found.document == document


def test_versions_and_revisions_grow_with_every_change(store: Store) -> None:
    assert store.revision == 0
    assert store.put(account("a")) == 1
    assert store.put(account("b")) == 2
    assert store.revision == 2
    assert store.require(Account, "000000000001").revision == 2
    assert store.revision_of("endpoint") == 0


def test_a_put_with_a_stale_version_is_refused(store: Store) -> None:
    store.put(account("a"), expected_version=0)
    with pytest.raises(AlreadyExists):
        store.put(account("b"), expected_version=0)
    with pytest.raises(Conflict):
        store.put(account("b"), expected_version=7)
    store.put(account("b"), expected_version=1)


def test_a_failed_transaction_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.transaction():
        store.put(account())
        raise RuntimeError
    assert store.get(Account, "000000000001") is None
    assert store.revision == 0
    store.put(account())
    assert store.revision == 1


def test_a_transaction_is_one_revision(store: Store) -> None:
    with store.transaction():
        store.put(account())
        store.put(endpoint())
    assert store.revision == 1
    assert store.revision_of("account") == store.revision_of("endpoint") == 1


def test_an_update_that_changes_nothing_writes_nothing(store: Store) -> None:
    store.put(account())
    store.update(Account, "000000000001", lambda old: old)
    assert store.revision == 1
    store.update(Account, "000000000001", lambda old: dataclasses.replace(old, name="x"))
    assert store.revision == 2
    with pytest.raises(NotFound):
        store.update(Account, "nobody", lambda old: old)


def test_select_filters_by_prefix_and_fields_in_key_order(store: Store) -> None:
    for name in ("b", "a", "C"):
        store.put(endpoint(name))
    assert [s.document.name for s in store.select(Endpoint)] == ["a", "b", "C"]
    assert [s.document.name for s in store.select(Endpoint, prefix="000000000001/b")] == ["b"]
    assert len(store.select(Endpoint, endpoint_uid="x")) == 0
    assert len(store.select(Endpoint, uid="ab" * 16, status="Creating")) == 3


def test_delete_says_whether_there_was_something(store: Store) -> None:
    store.put(account())
    assert store.delete(Account, "000000000001")
    assert not store.delete(Account, "000000000001")
    assert store.revision == 2


async def test_a_waiter_wakes_up_at_the_change_of_its_kind(store: Store) -> None:
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        waiting = group.create_task(store.wait_for_change(0, "endpoint", timeout_s=60))
        await asyncio.sleep(0)
        store.put(account())
        await asyncio.to_thread(store.put, endpoint())
    assert waiting.result() == 2


async def test_a_wait_without_change_returns_the_old_revision(store: Store) -> None:
    store.put(account())
    assert await store.wait_for_change(1, timeout_s=0.01) == 1
    assert await store.wait_for_change(0, timeout_s=60) == 1


def test_revisions_survive_a_restart_even_after_deletions(tmp_path: Path) -> None:
    path = tmp_path / "zeropull.db"
    with Store.open(path) as first:
        first.put(account())
        first.delete(Account, "000000000001")
    with Store.open(path) as second:
        assert second.revision == 2


def test_a_second_process_is_refused(store: Store) -> None:
    with pytest.raises(Conflict, match="in use by another"):
        Store.open(store.path)


def test_the_file_is_for_its_owner_only(store: Store) -> None:
    store.put(account())
    for file in store.path.parent.iterdir():
        assert file.stat().st_mode & 0o077 == 0, file


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "zeropull.db"
    Store.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE schema_version SET version = 99")
    connection.close()
    with pytest.raises(ConfigurationError, match="schema version 99"):
        Store.open(path)


@pytest.mark.parametrize("damage", ["whole", "middle"])
def test_a_damaged_file_is_named_clearly(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "zeropull.db"
    with Store.open(path) as store:
        for number in range(200):
            store.put(ResourceTags(f"arn:{number}", {"k": "v" * 200}))
    data = bytearray(path.read_bytes())
    if damage == "whole":
        data = bytearray(b"this is no database " * 500)
    else:
        data[4096 * 3 : 4096 * 6] = os.urandom(4096 * 3)
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="is damaged"):
        Store.open(path)
    # The lock was let go of: after mending, the same process can open it.
    path.unlink()
    Store.open(path).close()


_WRITER = """
import sys
from pathlib import Path
from zeropull.resources.accounts import Account
from zeropull.statestore import Store
from zeropull.statestore.changes import KEPT
store = Store.open(Path(sys.argv[1]))
for n in range(1_000_000):
    with store.transaction():
        store.put(Account("000000000001", str(n), 0.0))
        store.put(Account("000000000002", str(n), 0.0))
    print(n, flush=True)
"""


def test_a_killed_writer_leaves_whole_transactions(tmp_path: Path) -> None:
    path = tmp_path / "zeropull.db"
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert writer.stdout is not None
        seen = [int(writer.stdout.readline()) for _ in range(20)]
    finally:
        writer.send_signal(signal.SIGKILL)
        rest = writer.communicate()[0].split()
    acknowledged = int(rest[-1]) if rest else seen[-1]
    with Store.open(path) as store:
        first = int(store.require(Account, "000000000001").document.name)
        second = int(store.require(Account, "000000000002").document.name)
        assert first == second
        assert first >= acknowledged


def test_the_owners_of_changed_documents_are_known_however_they_changed(store: Store) -> None:
    def record(copy_id: str, endpoint_uid: str) -> TimelineRecord:
        return TimelineRecord(copy_id, "i-1", "0", endpoint_uid, "ep", "v", "d", "t", 1.0)

    assert store.owners_changed_since(store.revision) == set()
    began = store.revision
    store.put(record("c-1", "one"))
    store.put(account())
    second = store.revision
    assert store.owners_changed_since(began) == {"one"}
    assert store.owners_changed_since(second) == set()
    store.put(record("c-1", "two"))
    assert store.owners_changed_since(second) == {"one", "two"}
    third = store.revision
    store.delete(TimelineRecord, "c-1")
    assert store.owners_changed_since(third) == {"two"}
    with pytest.raises(ZeroDivisionError), store.transaction():
        store.put(record("c-2", "three"))
        raise ZeroDivisionError
    store.put(account("other"))
    assert store.owners_changed_since(third) == {"two"}


def test_owners_that_are_no_longer_remembered_may_be_all(store: Store) -> None:
    began = store.revision
    with store.transaction():
        for number in range(KEPT + 1):
            uid = f"uid-{number}"
            store.put(TimelineRecord("c-1", "i-1", "0", uid, "ep", "v", "d", "t", 1.0))
    assert store.owners_changed_since(began) is None
    assert store.owners_changed_since(store.revision) == set()
