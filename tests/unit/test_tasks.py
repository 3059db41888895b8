from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
import structlog
from structlog.testing import capture_logs
from structlog.typing import EventDict

from zeropull.errors import AlreadyExists, Conflict, NoCapacity, Unavailable
from zeropull.tasks import TaskSet


@pytest.fixture
def logged() -> Iterator[list[EventDict]]:
    structlog.reset_defaults()
    with capture_logs() as entries:
        yield entries


async def answer(value: int) -> int:
    return value


async def fail(error: Exception) -> NoReturn:
    raise error


async def for_ever() -> NoReturn:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def test_a_task_leaves_the_set_when_it_ends() -> None:
    async with TaskSet[str, int]("sums", limit=2) as tasks:
        task = tasks.start("a", answer(3))
        assert "a" in tasks
        assert list(tasks) == ["a"]
        await tasks.wait()
        assert task.result() == 3
        assert "a" not in tasks
        assert len(tasks) == 0


async def test_leaving_cancels_the_tasks_and_waits_for_their_clean_up() -> None:
    cleaned = asyncio.Event()

    async def cleans_up() -> None:
        try:
            await for_ever()
        finally:
            await asyncio.sleep(0.01)
            cleaned.set()

    async with TaskSet[str, None]("cleaning", limit=1) as tasks:
        task = tasks.start("a", cleans_up())
        await asyncio.sleep(0)
    assert cleaned.is_set()
    assert task.cancelled()


async def test_a_cancelled_owner_still_waits_for_its_tasks() -> None:
    began = asyncio.Event()
    may_end = asyncio.Event()
    ended = asyncio.Event()

    async def slow_to_end() -> None:
        try:
            began.set()
            await for_ever()
        finally:
            while not may_end.is_set():
                try:
                    await may_end.wait()
                except asyncio.CancelledError:
                    continue
            ended.set()

    async def own() -> None:
        async with TaskSet[str, None]("slow", limit=1) as tasks:
            tasks.start("a", slow_to_end())
            await for_ever()

    owner = asyncio.create_task(own())
    await began.wait()
    for _ in range(3):
        owner.cancel()
        await asyncio.sleep(0)
    assert not owner.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await owner
    assert ended.is_set()


async def test_cancel_ends_one_task_and_leaves_the_others() -> None:
    async with TaskSet[str, Any]("some", limit=2) as tasks:
        first, second = tasks.start("a", for_ever()), tasks.start("b", for_ever())
        await tasks.cancel("a")
        await tasks.cancel("unknown")
        assert first.cancelled()
        assert not second.done()


async def test_a_key_runs_once_at_a_time() -> None:
    async with TaskSet[str, Any]("some", limit=2) as tasks:
        tasks.start("a", for_ever())
        with pytest.raises(AlreadyExists, match="some: a is running already"):
            tasks.start("a", answer(1))


async def test_a_full_set_takes_no_more() -> None:
    async with TaskSet[str, Any]("some", limit=1) as tasks:
        tasks.start("a", for_ever())
        assert tasks.is_full
        with pytest.raises(NoCapacity, match="1 tasks run already, b must wait"):
            tasks.start("b", answer(1))


async def test_nothing_starts_once_the_set_is_closed() -> None:
    tasks = TaskSet[str, int]("some", limit=1)
    await tasks.close()
    with pytest.raises(Conflict):
        tasks.start("a", answer(1))


async def test_an_unforeseen_error_is_logged_with_its_traceback(logged: list[EventDict]) -> None:
    error = KeyError("x")
    async with TaskSet[str, None]("some", limit=1) as tasks:
        tasks.start("a", fail(error))
        await tasks.wait()
    assert [(each["tasks"], each["key"], each["exc_info"]) for each in logged] == [
        ("some", "a", error)
    ]


async def test_an_error_of_our_own_is_not_logged_but_told_to_on_end(
    logged: list[EventDict],
) -> None:
    ends: list[tuple[str, BaseException | None]] = []
    error = Unavailable("the registry is away")
    tasks = TaskSet[str, Any]("some", limit=3, on_end=lambda key, error: ends.append((key, error)))
    async with tasks:
        tasks.start("fails", fail(error))
        tasks.start("ends", answer(1))
        await tasks.wait()
        tasks.start("is cancelled", for_ever())
    assert sorted(ends, key=str) == [("ends", None), ("fails", error), ("is cancelled", None)]
    assert logged == []
