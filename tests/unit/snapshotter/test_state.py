from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from zeropull.containerd.snapshots import SnapshotInfo, SnapshotKind, SnapshotUsage
from zeropull.errors import AlreadyExists, ConfigurationError, Conflict, InvalidInput, NotFound
from zeropull.snapshotter.state import SnapshotState


@pytest.fixture
def state(tmp_path: Path) -> Iterator[SnapshotState]:
    state = SnapshotState(tmp_path / "snapshots.db")
    yield state
    state.close()


def active(name: str, parent: str = "") -> SnapshotInfo:
    return SnapshotInfo(name, parent, SnapshotKind.ACTIVE, {"kept": "yes"}, 1, 1)


def committed(state: SnapshotState, name: str, parent: str = "") -> None:
    with state.transaction():
        state.insert(active(f"{name}-active", parent))
        state.commit(f"{name}-active", name, {}, 2)


def test_ancestry_goes_from_the_top_to_the_lowest(state: SnapshotState) -> None:
    for name, parent in (("one", ""), ("two", "one"), ("three", "two")):
        committed(state, name, parent)
    assert [r.info.name for r in state.ancestry("three")] == ["three", "two", "one"]
    assert state.ancestry("") == []


def test_labels_are_found_by_what_stands_in_them(state: SnapshotState) -> None:
    with state.transaction():
        for name, ref in (("a", "sha256:11"), ("b", "sha256:22"), ("c", "sha256:11")):
            state.insert(SnapshotInfo(name, "", SnapshotKind.COMMITTED, {"ref": ref}, 1, 1))
    assert [r.info.name for r in state.labelled("sha256:11")] == ["a", "c"]
    assert state.labelled("sha256:33") == []


def test_commit_replaces_labels_and_frees_the_key(state: SnapshotState) -> None:
    committed(state, "one")
    assert dict(state.get("one").info.labels) == {}
    with pytest.raises(NotFound):
        state.get("one-active")


def test_rules_of_parents_and_children(state: SnapshotState) -> None:
    committed(state, "one")
    with state.transaction():
        state.insert(active("run", "one"))
    with pytest.raises(Conflict), state.transaction():
        state.delete("one")
    with pytest.raises(InvalidInput), state.transaction():
        state.insert(active("over", "run"))
    with pytest.raises(NotFound), state.transaction():
        state.insert(active("over", "nothing"))
    with pytest.raises(AlreadyExists), state.transaction():
        state.insert(active("run", "one"))
    with pytest.raises(AlreadyExists), state.transaction():
        state.commit("run", "one", {}, 3)
    with pytest.raises(Conflict), state.transaction():
        state.commit("one", "two", {}, 3)


def test_a_failed_transaction_leaves_nothing(state: SnapshotState) -> None:
    with pytest.raises(RuntimeError), state.transaction():
        state.insert(active("run"))
        raise RuntimeError
    assert state.all() == []


def test_identifiers_are_never_used_twice(state: SnapshotState) -> None:
    with state.transaction():
        first = state.insert(active("run"))
    with state.transaction():
        state.delete("run")
    with state.transaction():
        assert state.insert(active("run")) > first


def test_everything_is_there_after_opening_again(tmp_path: Path) -> None:
    state = SnapshotState(tmp_path / "s.db")
    with state.transaction():
        number = state.insert(active("run"), Path("/layer"))
        state.set_usage(number, SnapshotUsage(7, 3))
        state.set_fact("namespace", "one")
    before = state.get("run")
    state.close()
    again = SnapshotState(tmp_path / "s.db")
    assert again.get("run") == before
    assert again.fact("namespace") == "one"
    again.close()


def test_labels_with_an_empty_value_go(state: SnapshotState) -> None:
    with state.transaction():
        state.insert(active("run"))
        info = state.set_labels("run", {"a": "", "b": "2"}, 9)
    assert (dict(info.labels), info.updated_ns) == ({"b": "2"}, 9)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "s.db")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ConfigurationError, match="99"):
        SnapshotState(tmp_path / "s.db")


def test_shared_layers_live_as_long_as_a_snapshot_names_them(state: SnapshotState) -> None:
    with state.transaction():
        base = state.share_layer("sha256:a", Path("/layers/a"), "1")
        assert state.share_layer("sha256:a", Path("/layers/a"), "1") == base
        one = state.share_layer("sha256:b", Path("/layers/b"), "1")
        assert state.share_layer("sha256:b", Path("/layers/b"), "2") != one
        for name, chain in (("one", [one, base]), ("two", [base])):
            info = SnapshotInfo(name, "", SnapshotKind.COMMITTED, {}, 1, 1)
            state.insert(info, chain=chain)
    assert state.get("one").chain == (one, base)
    with state.transaction():
        assert len(state.forget_unshared_layers()) == 1  # the second "b"
        state.delete("one")
        assert state.forget_unshared_layers() == [one]
        state.delete("two")
        assert state.forget_unshared_layers() == [base]
    assert state.shared_layers() == {}


def test_a_file_of_the_version_before_keeps_its_snapshots(tmp_path: Path) -> None:
    path = tmp_path / "snapshots.db"
    before = SnapshotState(path)
    committed(before, "one")
    before.close()
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE snapshots DROP COLUMN chain")
        database.execute("DROP TABLE layers")
        database.execute("PRAGMA user_version = 1")
    database.close()
    after = SnapshotState(path)
    assert (after.get("one").chain, after.shared_layers()) == ((), {})
    after.close()


def test_readers_do_not_wait_for_a_change_and_see_what_was_committed(state: SnapshotState) -> None:
    committed(state, "one")
    with ThreadPoolExecutor(1) as other, state.transaction():
        state.insert(active("two", "one"))
        assert state.find("two") is not None, "what this thread has written itself"
        seen = other.submit(lambda: (state.find("two"), state.get("one").info.kind)).result(10.0)
    assert seen == (None, SnapshotKind.COMMITTED)
    assert state.find("two") is not None


def test_a_layer_moves_over_a_committed_parent_only(state: SnapshotState) -> None:
    committed(state, "one")
    with state.transaction():
        moved = state.insert(active("two"))
        state.rebase(moved, "one")
    assert [r.info.name for r in state.ancestry("two")] == ["two", "one"]
    with pytest.raises(InvalidInput), state.transaction():
        state.rebase(moved, "two")
    with pytest.raises(NotFound), state.transaction():
        state.rebase(moved, "nowhere")
