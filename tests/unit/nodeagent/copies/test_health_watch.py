"""A container's pings, against a real server."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest

from zeropull.containerd.tasks import TaskExit
from zeropull.nodeagent.copies.health_watch import HealthWatch, describe_exit


@pytest.fixture
async def refusing() -> AsyncIterator[int]:
    """Port of a server that answers every ping with 503."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 503 Not Yet\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


async def nothing() -> None:
    """Nobody is to be told."""


def watch(port: int, monotonic: object, timeout_s: float) -> HealthWatch:
    return HealthWatch(
        "127.0.0.1",
        timeout_s=timeout_s,
        healthy=False,
        started_before_s=0.0,
        window_began_before_s=0.0,
        became_healthy=nothing,
        port=port,
        monotonic=monotonic,  # type: ignore[arg-type]
    )


async def test_a_container_that_never_answers_is_told_with_its_last_answer(
    refusing: int,
) -> None:
    problem = await watch(refusing, asyncio.get_running_loop().time, 0.2).until_problem()
    assert not problem.was_healthy
    assert "within 0.2 s (last attempt: status 503)" in problem.message


async def test_a_pause_of_the_agent_does_not_use_up_the_time_out(refusing: int) -> None:
    """The clock jumps by 100 s once, as it does for a process that was stopped."""
    reads = itertools.count()
    loop = asyncio.get_running_loop()

    def monotonic() -> float:
        return loop.time() + (100.0 if next(reads) > 3 else 0.0)

    began_s = loop.time()
    await watch(refusing, monotonic, 0.5).until_problem()
    assert loop.time() - began_s > 0.4


@pytest.mark.parametrize(
    ("status", "words"), [(3, "exited with status 3"), (137, "ended by signal 9"), (143, "15")]
)
def test_an_exit_is_described(status: int, words: str) -> None:
    assert words in describe_exit(TaskExit(status, 0))
    assert "gone" in describe_exit(None)
