"""All tests together leave nothing on the host that was not there before."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from tests.fixtures.leftovers import (
    MARK,
    everything_on_host,
    left_behind,
    made_by_session,
    render,
)


def pytest_keyboard_interrupt() -> None:
    """A person who interrupts the tests wants to see their failures, not ours."""
    os.environ.pop(MARK, None)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set up before every other fixture, so that its end comes after theirs."""
    mark = uuid.uuid4().hex
    is_exclusive = bool(os.environ.get("CI") or os.environ.get("TESTS_EXCLUSIVE"))
    before = everything_on_host() if is_exclusive else {}
    os.environ[MARK] = mark
    yield
    if os.environ.pop(MARK, None) is None:  # interrupted
        return

    def look() -> dict[str, set[str]]:
        own = made_by_session(mark, tmp_path_factory.getbasetemp())
        if not is_exclusive:
            return own
        everything = everything_on_host()
        return everything | {"processes": everything["processes"] | own["processes"]}

    left = left_behind(before, look)
    if left:
        pytest.fail(f"the tests left behind on this machine:\n{render(left)}", pytrace=False)
