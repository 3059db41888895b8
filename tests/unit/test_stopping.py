"""A cancelled caller never goes before the thread that works for it."""

from __future__ import annotations

import asyncio
import threading

import pytest
from structlog.testing import capture_logs

from zeropull.errors import Unavailable
from zeropull.stopping import check_stop, run_stoppable, run_to_end


async def test_the_result_and_the_error_are_the_callers() -> None:
    assert await run_to_end(pow, 2, 10) == 1024
    assert await run_stoppable(lambda stop: stop.is_set()) is False
    with pytest.raises(ZeroDivisionError):
        await run_to_end(lambda: 1 // 0)


async def test_a_caller_that_is_cancelled_again_and_again_waits_for_the_end() -> None:
    making, may_end = threading.Event(), threading.Event()
    steps: list[str] = []

    def make() -> None:
        making.set()
        may_end.wait(20)
        steps.append("made")

    async def launch() -> None:
        try:
            await run_to_end(make)
        finally:
            steps.append("the caller goes")

    launching = asyncio.create_task(launch())
    await asyncio.to_thread(making.wait, 20)
    for _ in range(3):
        launching.cancel()
        await asyncio.sleep(0)
    assert steps == []
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await launching
    assert steps == ["made", "the caller goes"]


async def test_stoppable_work_is_told_to_stop_and_its_end_is_waited_for() -> None:
    begun, ended = threading.Event(), threading.Event()

    def work(stop: threading.Event) -> None:
        begun.set()
        stop.wait(20)
        ended.set()
        check_stop(stop)

    working = asyncio.create_task(run_stoppable(work))
    await asyncio.to_thread(begun.wait, 20)
    working.cancel()
    with capture_logs() as logged, pytest.raises(asyncio.CancelledError):
        await working
    assert ended.is_set()
    assert logged == [], "that it was stopped is no news"


async def test_an_error_of_cancelled_work_is_logged() -> None:
    making, may_end = threading.Event(), threading.Event()

    def fail() -> None:
        making.set()
        may_end.wait(20)
        raise OSError("the disk is gone")

    working = asyncio.create_task(run_to_end(fail))
    await asyncio.to_thread(making.wait, 20)
    working.cancel()
    may_end.set()
    with capture_logs() as logged, pytest.raises(asyncio.CancelledError):
        await working
    assert [each["error"] for each in logged] == ["the disk is gone"]


def test_only_a_set_event_stops() -> None:
    check_stop(None)
    stop = threading.Event()
    check_stop(stop)
    stop.set()
    with pytest.raises(Unavailable):
        check_stop(stop)
