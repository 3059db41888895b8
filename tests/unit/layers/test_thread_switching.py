"""The interpreter's switch interval while layers are pulled."""

import sys

import pytest

from zeropull.layers.thread_switching import SWITCH_INTERVAL_S, short_switch_interval


def test_the_last_pull_that_ends_restores_the_switch_interval() -> None:
    before = sys.getswitchinterval()
    assert before > SWITCH_INTERVAL_S
    first, second = short_switch_interval(), short_switch_interval()
    with first:
        second.__enter__()
        assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)
    second.__exit__(None, None, None)
    assert sys.getswitchinterval() == pytest.approx(before)


def test_a_pull_that_fails_restores_the_switch_interval() -> None:
    before = sys.getswitchinterval()
    with pytest.raises(ValueError, match="damaged"), short_switch_interval():
        raise ValueError("damaged")
    assert sys.getswitchinterval() == pytest.approx(before)
