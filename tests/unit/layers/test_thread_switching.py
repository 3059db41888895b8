"""The interpreter's switch interval while layers are pulled."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from zeropull.layers.thread_switching import SWITCH_INTERVAL_S, switch_threads_often


@pytest.fixture(autouse=True)
def interval_as_before() -> Iterator[None]:
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


def test_threads_are_switched_often_from_the_first_pull_on() -> None:
    sys.setswitchinterval(0.005)
    switch_threads_often()
    switch_threads_often()
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)


def test_a_shorter_interval_stays() -> None:
    sys.setswitchinterval(0.000_1)
    switch_threads_often()
    assert sys.getswitchinterval() <= 0.000_1
