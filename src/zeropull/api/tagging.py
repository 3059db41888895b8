"""Rules of tags, and tags as the lists of Key and Value that the APIs have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zeropull.errors import InvalidInput
from zeropull.resources.tags import ResourceTags
from zeropull.statestore import Store

MAX_TAGS = 50


def merged_tags(tags: Mapping[str, str], given: list[dict[str, Any]]) -> dict[str, str]:
    """`tags` with those of `given` added or replaced.

    Raises:
        InvalidInput: a reserved key, a key twice, or too many tags.
    """
    keys = [tag["Key"] for tag in given]
    for key in keys:
        if key.lower().startswith("aws:"):
            raise InvalidInput(
                f"The tag key '{key}' is not allowed: keys that begin with aws: are reserved."
            )
        if keys.count(key) > 1:
            raise InvalidInput(f"Duplicate tag key '{key}' in the request.")
    merged = {**tags, **{tag["Key"]: tag["Value"] for tag in given}}
    if len(merged) > MAX_TAGS:
        raise InvalidInput(f"A resource has at most {MAX_TAGS} tags; this would be {len(merged)}.")
    return merged


def as_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def tags_of(store: Store, arn: str) -> dict[str, str]:
    found = store.get(ResourceTags, arn)
    return dict(found.document.tags) if found is not None else {}


def set_tags(store: Store, arn: str, tags: dict[str, str]) -> None:
    """Replace the tags of `arn`; a resource without tags has no document of them."""
    if tags:
        store.put(ResourceTags(arn, tags))
    else:
        store.delete(ResourceTags, arn)


def set_initial_tags(store: Store, arn: str, given: list[dict[str, Any]]) -> None:
    """Store the tags of a new resource. Tags of an earlier resource of the same name go."""
    set_tags(store, arn, merged_tags({}, given))
