"""A unit test takes milliseconds, and leaves nothing open: one that hangs is a failed test soon."""

from __future__ import annotations

import pytest

# Some start processes or try hundreds of made-up inputs, on machines that do other things, too.
TIMEOUT_S = 60


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/unit/" in item.path.as_posix() and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))
        for warning in ("pytest.PytestUnraisableExceptionWarning", "ResourceWarning"):
            item.add_marker(pytest.mark.filterwarnings(f"error::{warning}"))
