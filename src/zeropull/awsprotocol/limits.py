"""Bounds of a request's body, checked before a parser sees it.

The parsers of JSON and CBOR are C code that lets no other thread run before it is done. The bounds
keep each of them below 50 ms, whatever the body holds.
"""

from __future__ import annotations

from typing import NoReturn

from zeropull.awsprotocol.faults import ApiFault

MAX_ITEMS = 200_000  # the largest real request, a PutMetricData of 1 MB, has about as many
MAX_CONTAINERS = 60_000  # 1,000 datums with 30 dimensions each have half of that
MAX_DEPTH = 32  # the deepest input shape of a served operation has nine levels


def check_counts(items: int, containers: int) -> None:
    """Raises ApiFault when a body has more values, or more lists and objects, than are allowed."""
    if items > MAX_ITEMS:
        _refuse(f"more than {MAX_ITEMS} values")
    if containers > MAX_CONTAINERS:
        _refuse(f"more than {MAX_CONTAINERS} lists and objects")


def _refuse(what: str) -> NoReturn:
    raise ApiFault(
        "RequestEntityTooLargeException",
        f"The body has {what}: send several smaller requests.",
        413,
    )
