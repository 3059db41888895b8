"""Documents in memory are those in the store, however they change."""

from __future__ import annotations

from pathlib import Path

from zeropull.resources.tags import ResourceTags
from zeropull.statestore import Store
from zeropull.statestore.cached_kind import CachedKind
from zeropull.statestore.changes import KEPT


def test_answers_follow_the_store_and_are_kept_while_it_stands_still(tmp_path: Path) -> None:
    with Store.open(tmp_path / "state.db") as store:
        known = CachedKind(store, ResourceTags, lambda each: each.tags.get("team", ""))
        assert known.all() == []
        for arn in ("a/1", "a/2", "b/1"):
            store.put(ResourceTags(arn, {"team": arn[0]}))
        assert [each.arn for each in known.under("a/")] == ["a/1", "a/2"]
        assert [each.arn for each in known.grouped("b")] == ["b/1"]
        assert known.all() is known.all()
        store.put(ResourceTags("a/1", {"team": "b"}))
        store.delete(ResourceTags, "a/2")
        assert [each.arn for each in known.grouped("b")] == ["a/1", "b/1"]
        found = known.get("a/1")
        assert found is not None
        assert found.tags == {"team": "b"}
        assert known.get("a/2") is None
        assert known.grouped("none") == []


def test_only_what_changed_is_read_again(tmp_path: Path) -> None:
    with Store.open(tmp_path / "state.db") as store:
        known = CachedKind(store, ResourceTags, lambda each: each.tags["team"])
        for number in range(500):
            store.put(ResourceTags(f"a/{number:03}", {"team": str(number % 2)}))
        before = known.all()
        untouched = known.get("a/100")
        store.put(ResourceTags("a/007", {"team": "0"}))
        store.delete(ResourceTags, "a/008")
        store.put(ResourceTags("a/500", {"team": "1"}))
        seen: list[str] = []
        store._file._connection.set_trace_callback(seen.append)
        assert known.get("a/100") is untouched
        store._file._connection.set_trace_callback(None)
        assert len(seen) == 3
        expected = [stored.document for stored in store.select(ResourceTags)]
        assert known.all() == expected
        assert len(before) == 500  # who walks along it is not disturbed
        for team in ("0", "1"):
            assert known.grouped(team) == [each for each in expected if each.tags["team"] == team]


def test_more_changes_than_are_remembered_are_all_seen(tmp_path: Path) -> None:
    with Store.open(tmp_path / "state.db") as store:
        known = CachedKind(store, ResourceTags)
        store.put(ResourceTags("a", {}))
        assert len(known.all()) == 1
        with store.transaction():
            for number in range(KEPT + 1):
                store.put(ResourceTags(f"b/{number}", {}))
        assert store.changed_since(ResourceTags.kind, 1) is None
        assert len(known.all()) == KEPT + 2
