"""The interpreter's switch interval while layers are pulled, and the thread that goes first."""

import os
import sys
import threading

import pytest

from zeropull.imagecache.threads import (
    NICE,
    SWITCH_INTERVAL_S,
    prefer_this_thread,
    short_switch_interval,
)


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may go first")
def test_only_the_thread_that_asks_goes_first() -> None:
    found: list[int] = []

    def work() -> None:
        prefer_this_thread()
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    before = os.getpriority(os.PRIO_PROCESS, 0)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [NICE]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
