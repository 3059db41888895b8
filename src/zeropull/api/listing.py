"""What every List operation shares: filters, sorting, pages with opaque tokens."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from zeropull.awsprotocol.faults import VALIDATION, ApiFault
from zeropull.errors import InvalidInput

T = TypeVar("T")
SortKey = tuple[str | float, str]
_PAGING = ("NextToken", "MaxResults", "MaxRecords")


def page(
    items: Iterable[T],
    members: Mapping[str, Any],
    sort_key: Callable[[T], SortKey],
    *,
    descending: bool,
    default_size: int,
    token_fault: str = VALIDATION,
) -> tuple[list[T], str | None]:
    """One page and the token of the next; `token_fault` is the service's code for a wrong token.

    A token holds the place of the page's last item, not its number. An item that is created or
    deleted meanwhile repeats and hides no other. A token is good only for the same filters.

    Raises:
        ApiFault: the token is not one of ours, or belongs to other filters.
        InvalidInput: the size of a page is not above 0; not every model has that bound.
    """
    size = int(members.get("MaxResults", default_size))
    if size < 1:
        raise InvalidInput(f"MaxResults {size} is below 1.")
    ordered = sorted(items, key=sort_key, reverse=descending)
    filters = {name: value for name, value in members.items() if name not in _PAGING}
    digest = hashlib.sha256(json.dumps(filters, sort_keys=True).encode()).hexdigest()[:16]
    token = members.get("NextToken")
    if token is not None:
        after = _place_of(token, digest, token_fault)
        try:
            ordered = [
                item
                for item in ordered
                if (sort_key(item) < after if descending else sort_key(item) > after)
            ]
        except TypeError as error:
            raise _invalid_token(token_fault) from error
    chosen = ordered[:size]
    if len(ordered) <= size:
        return chosen, None
    place = json.dumps([digest, *sort_key(chosen[-1])], separators=(",", ":"))
    return chosen, base64.urlsafe_b64encode(place.encode()).decode()


def page_by_creation_or_name(
    items: Iterable[T],
    members: Mapping[str, Any],
    *,
    name: Callable[[T], str],
    created_s: Callable[[T], float],
    status: Callable[[T], str] = lambda _: "",
    default_size: int = 10,
) -> tuple[list[T], str | None]:
    """A page of SageMaker's lists, by SortBy (default CreationTime) and SortOrder (Descending)."""

    def sort_key(item: T) -> SortKey:
        match members.get("SortBy", "CreationTime"):
            case "Name":
                return name(item), ""
            case "Status":
                return status(item), name(item)
        return created_s(item), name(item)

    kept = [item for item in items if _is_wanted(name(item), created_s(item), members)]
    # SageMaker has two enums for the order: "Ascending" and "Descending" in both.
    descending = members.get("SortOrder", "Descending") == "Descending"
    return page(kept, members, sort_key, descending=descending, default_size=default_size)


def _is_wanted(name: str, created_s: float, members: Mapping[str, Any]) -> bool:
    return (
        str(members.get("NameContains", "")).lower() in name.lower()
        and created_s < members.get("CreationTimeBefore", float("inf"))
        and created_s >= members.get("CreationTimeAfter", float("-inf"))
    )


def _place_of(token: str, digest: str, token_fault: str) -> SortKey:
    try:
        found, value, name = json.loads(base64.urlsafe_b64decode(token.encode()))
    except (ValueError, TypeError) as error:
        raise _invalid_token(token_fault) from error
    if found != digest or not isinstance(value, str | float | int) or not isinstance(name, str):
        raise _invalid_token(token_fault)
    return value, name


def _invalid_token(code: str) -> ApiFault:
    return ApiFault(
        code,
        "The NextToken is not valid for this request: use the one that the previous page returned, "
        "with the same filters.",
    )
