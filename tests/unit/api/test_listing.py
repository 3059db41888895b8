"""Pages with opaque tokens."""

from __future__ import annotations

from typing import Any

import pytest

from zeropull.api.listing import page, page_by_creation_or_name
from zeropull.awsprotocol.faults import ApiFault
from zeropull.errors import InvalidInput

ITEMS = ["d", "b", "a", "c", "e"]


def paged(members: dict[str, Any], items: list[str] | None = None) -> tuple[list[str], str | None]:
    given = ITEMS if items is None else items
    return page(given, members, lambda each: (each, ""), descending=False, default_size=3)


def test_pages_follow_each_other_whatever_comes_and_goes_meanwhile() -> None:
    first, token = paged({"MaxResults": 2})
    assert first == ["a", "b"]
    second, token = paged({"MaxResults": 2, "NextToken": token}, ["a", "aa", "c", "d", "e"])
    assert second == ["c", "d"]
    last, token = paged({"MaxResults": 2, "NextToken": token})
    assert (last, token) == (["e"], None)


@pytest.mark.parametrize("size", [0, -1, -(2**31)])
def test_a_page_has_one_item_at_least(size: int) -> None:
    for items in (ITEMS, []):
        with pytest.raises(InvalidInput, match="below 1"):
            paged({"MaxResults": size}, items)


def test_a_token_is_good_for_the_same_filters_only() -> None:
    _, token = paged({"MaxResults": 2, "NameContains": "x"})
    for members in ({"NextToken": token}, {"NextToken": "no token"}, {"NextToken": "é"}):
        with pytest.raises(ApiFault, match="NextToken is not valid"):
            paged(members)


def test_the_newest_come_first_and_filters_are_by_name_and_time() -> None:
    created = {"Abc": 1.0, "abd": 2.0, "x": 3.0}

    def names(**members: Any) -> list[str]:
        return page_by_creation_or_name(
            created, members, name=lambda n: n, created_s=created.__getitem__
        )[0]

    assert names() == ["x", "abd", "Abc"]
    assert names(SortBy="Name", SortOrder="Ascending") == ["Abc", "abd", "x"]
    assert names(NameContains="AB") == ["abd", "Abc"]
    assert names(CreationTimeAfter=2.0, CreationTimeBefore=3.0) == ["abd"]
