"""Bounds of what a parser sees."""

from __future__ import annotations

import pytest

from zeropull.awsprotocol.faults import ApiFault
from zeropull.awsprotocol.limits import MAX_CONTAINERS, MAX_ITEMS, check_counts


def test_bodies_within_the_bounds_pass_and_others_are_too_large() -> None:
    check_counts(MAX_ITEMS, MAX_CONTAINERS)
    for items, containers in ((MAX_ITEMS + 1, 0), (0, MAX_CONTAINERS + 1)):
        with pytest.raises(ApiFault) as caught:
            check_counts(items, containers)
        assert (caught.value.code, caught.value.status) == ("RequestEntityTooLargeException", 413)
