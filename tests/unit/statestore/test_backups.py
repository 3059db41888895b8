"""Backups are made while the state is in use, and only whole ones are restored."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from zeropull.errors import (
    AlreadyExists,
    ConfigurationError,
    Conflict,
    IntegrityError,
    NotFound,
    ZeropullError,
)
from zeropull.resources.tags import ResourceTags
from zeropull.statestore import Store
from zeropull.statestore.backups import back_up, restore

TIME = "20270101T000000"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "state" / "zeropull.db"
    with Store.open(path) as store:
        store.put(ResourceTags("arn:a", {"team": "one"}))
        store.put(ResourceTags("arn:b", {"team": "two"}))
    return path


def names(database: Path) -> list[str]:
    with Store.open(database) as store:
        return [stored.document.arn for stored in store.select(ResourceTags)]


def test_a_backup_brings_the_state_back_as_it_was(database: Path, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    with Store.open(database) as store:
        assert back_up(database, target).documents == 2
        assert target.stat().st_mode & 0o777 == 0o600
        store.delete(ResourceTags, "arn:a")
        store.put(ResourceTags("arn:c", {}))
    content = restore(target, database, TIME)
    assert (content.documents, content.damaged) == (2, 0)
    assert names(database) == ["arn:a", "arn:b"]
    assert names(database.with_name(f"zeropull.db.replaced-{TIME}")) == ["arn:b", "arn:c"]
    assert sorted(tmp_path.iterdir()) == [target, database.parent]  # nothing is left beside it


def test_a_backup_is_one_moment_of_a_state_that_is_written(database: Path, tmp_path: Path) -> None:
    stop = threading.Event()

    def write(store: Store) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with store.transaction():
                store.put(ResourceTags("arn:a", {"n": str(number)}))
                store.put(ResourceTags("arn:b", {"n": str(number)}))

    with Store.open(database) as store:
        store.put(ResourceTags("arn:a", {"n": "0"}))
        store.put(ResourceTags("arn:b", {"n": "0"}))
        writer = threading.Thread(target=write, args=(store,))
        writer.start()
        try:
            for number in range(5):
                back_up(database, tmp_path / str(number))
        finally:
            stop.set()
            writer.join()
    for number in range(5):
        restore(tmp_path / str(number), database, f"{TIME}-{number}")
        with Store.open(database) as store:
            first, second = (stored.document.tags for stored in store.select(ResourceTags))
            assert first == second


def test_what_is_in_use_is_not_restored(database: Path, tmp_path: Path) -> None:
    back_up(database, tmp_path / "backup")
    with Store.open(database), pytest.raises(Conflict, match="in use by another"):
        restore(tmp_path / "backup", database, TIME)
    assert names(database) == ["arn:a", "arn:b"]


@pytest.mark.parametrize("at", ["document", "structure", "length", "other"])
def test_a_damaged_backup_is_refused_and_changes_nothing(
    database: Path, tmp_path: Path, at: str
) -> None:
    backup = tmp_path / "backup"
    back_up(database, backup)
    data = backup.read_bytes()
    damaged = {
        "document": data.replace(b'"one"', b'"onf"'),
        "structure": data[:4096] + b"\xa5" * (len(data) - 4096),
        "length": data[: len(data) // 2],
        "other": b"a letter, not a backup\n" * 400,
    }[at]
    backup.write_bytes(damaged)
    with pytest.raises(IntegrityError, match="backup") as refused:
        restore(backup, database, TIME)
    assert str(backup) in refused.value.reason
    assert names(database) == ["arn:a", "arn:b"]
    assert sorted(file.name for file in database.parent.iterdir()) == [
        "zeropull.db", "zeropull.db.lock",
    ]  # fmt: skip


def test_a_backup_of_a_newer_release_is_refused(database: Path, tmp_path: Path) -> None:
    import sqlite3

    back_up(database, tmp_path / "backup")
    connection = sqlite3.connect(tmp_path / "backup")
    with connection:
        connection.execute("UPDATE schema_version SET version = 99")
    connection.close()
    with pytest.raises(ConfigurationError, match="schema version 99"):
        restore(tmp_path / "backup", database, TIME)


def test_damaged_documents_are_left_out_of_a_backup_and_counted(
    database: Path, tmp_path: Path
) -> None:
    database.write_bytes(database.read_bytes().replace(b'"one"', b'"onf"'))
    assert (found := back_up(database, tmp_path / "backup")).damaged == 1
    assert found.documents == 1
    restore(tmp_path / "backup", database, TIME)
    assert names(database) == ["arn:b"]


def test_a_backup_never_replaces_a_file_and_needs_a_state(database: Path, tmp_path: Path) -> None:
    (tmp_path / "backup").write_text("mine")
    with pytest.raises(AlreadyExists, match="name another file"):
        back_up(database, tmp_path / "backup")
    with pytest.raises(NotFound, match="no state"):
        back_up(tmp_path / "nothing.db", tmp_path / "other")
    with pytest.raises(ZeropullError, match="cannot be written"):
        back_up(database, tmp_path / "nowhere" / "backup")
    with pytest.raises(NotFound, match="no backup"):
        restore(tmp_path / "nothing", database, TIME)
