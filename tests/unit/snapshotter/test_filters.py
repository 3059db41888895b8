from __future__ import annotations

import pytest

from zeropull.containerd.snapshots import SnapshotInfo, SnapshotKind
from zeropull.errors import InvalidInput
from zeropull.snapshotter.filters import parse_filters

INFO = SnapshotInfo(
    "ns/1/top",
    "ns/cache/sha256:ab",
    SnapshotKind.COMMITTED,
    {"containerd.io/snapshot.ref": "sha256:ab", "color": "dark, red", "a.b": "dotted"},
)


@pytest.mark.parametrize(
    ("filters", "matches"),
    [
        ([], True),
        (["name==ns/1/top"], True),
        (["name==ns/1"], False),
        (["kind==committed"], True),
        (["kind==active"], False),
        (["kind==active", "kind==committed"], True),
        (["kind==committed,name!=ns/1/top"], False),
        (['labels."containerd.io/snapshot.ref"==sha256:ab,parent=="ns/cache/sha256:ab"'], True),
        (['labels."containerd.io/snapshot.ref"==sha256:ab,parent==""'], False),
        (["labels.color"], True),
        (["labels.size"], False),
        (["labels.size!=big"], True),
        (['labels.color=="dark, red",kind'], True),
        (["labels.a.b==dotted"], True),
        (["name~=/top$/"], True),
        (["name~=|^top|"], False),
        (['name~="^ns/[0-9]+/"'], True),
        (["unknown==x"], False),
        (["unknown"], False),
    ],
)
def test_filters_match_as_containerd_does(filters: list[str], matches: bool) -> None:
    assert parse_filters(filters)(INFO) is matches


@pytest.mark.parametrize(
    "broken",
    ["", "name==", "name=x", "==x", 'name=="x', "name==a,,kind==b", "name~=/(/", "name==a b", ","],
)
def test_broken_filters_are_refused_with_their_place(broken: str) -> None:
    with pytest.raises(InvalidInput, match="filter"):
        parse_filters([broken])
