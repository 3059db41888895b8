"""Rules of tags."""

from __future__ import annotations

import pytest

from zeropull.api.tagging import MAX_TAGS, as_list, merged_tags
from zeropull.errors import InvalidInput


def tag(key: str, value: str = "v") -> dict[str, str]:
    return {"Key": key, "Value": value}


def test_given_tags_are_added_and_replace() -> None:
    assert merged_tags({"a": "1", "b": "2"}, [tag("b", "3"), tag("c")]) == {
        "a": "1", "b": "3", "c": "v",
    }  # fmt: skip
    assert as_list({"a": "1"}) == [tag("a", "1")]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([tag("AWS:x")], "reserved"),
        ([tag("a"), tag("a")], "Duplicate"),
        ([tag(str(n)) for n in range(MAX_TAGS)], "at most 50"),
    ],
)
def test_tags_that_break_a_rule_are_refused(given: list[dict[str, str]], text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        merged_tags({"kept": "x"}, given)
