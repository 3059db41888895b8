"""Documents in memory are those in the store, however they change."""

from __future__ import annotations

from pathlib import Path

from zeropull.resources.tags import ResourceTags
from zeropull.statestore import Store
from zeropull.statestore.cached_kind import CachedKind


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
