from __future__ import annotations

import pytest

from zeropull.backoff import Backoff

BACKOFF = Backoff(first_s=2.0, limit_s=120.0)


def test_each_failure_doubles_the_pause_up_to_the_limit() -> None:
    pauses = [BACKOFF.after(failures) for failures in range(1, 9)]
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 120.0, 120.0]


@pytest.mark.parametrize("failures", [1024, 1025, 10**6, 10**30])
def test_no_count_of_failures_overflows(failures: int) -> None:
    assert BACKOFF.after(failures) == 120.0


def test_no_failure_is_no_pause() -> None:
    assert BACKOFF.after(0) == 0.0


def test_a_first_pause_above_the_limit_is_the_limit() -> None:
    assert Backoff(first_s=300.0, limit_s=120.0).after(1) == 120.0


@pytest.mark.parametrize(("jitter", "pause_s"), [(0.0, 8.0), (0.5, 6.0), (1.0, 4.0)])
def test_jitter_shortens_the_pause_by_up_to_a_half(jitter: float, pause_s: float) -> None:
    assert BACKOFF.after(3, jitter=jitter) == pause_s
