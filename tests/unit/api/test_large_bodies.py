"""Work in threads, bounded by account."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from zeropull.api.large_bodies import MAX_WAITING, MAX_WAITING_IN_ALL, LargeBodies
from zeropull.awsprotocol.faults import ApiFault


@pytest.fixture
def large() -> Iterator[LargeBodies]:
    made = LargeBodies()
    yield made
    made.close()


async def test_work_runs_beside_the_loop(large: LargeBodies) -> None:
    assert await large.run("a", threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await large.run("a", lambda: 1 // 0)


async def test_one_account_cannot_take_all_places(large: LargeBodies) -> None:
    go = threading.Event()
    running = [asyncio.ensure_future(large.run("a", go.wait)) for _ in range(MAX_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(ApiFault) as caught:
        await large.run("a", go.wait)
    assert caught.value.code == "ThrottlingException"
    running.append(asyncio.ensure_future(large.run("b", go.wait)))
    await asyncio.sleep(0)
    go.set()
    assert all(await asyncio.gather(*running))
    assert await large.run("a", lambda: 1) == 1


async def test_all_accounts_together_are_bounded(large: LargeBodies) -> None:
    go = threading.Event()
    running = [asyncio.ensure_future(large.run(str(n), go.wait)) for n in range(MAX_WAITING_IN_ALL)]
    await asyncio.sleep(0)
    with pytest.raises(ApiFault):
        await large.run("one more", go.wait)
    go.set()
    await asyncio.gather(*running)


async def test_a_caller_that_goes_away_leaves_its_place(large: LargeBodies) -> None:
    for _ in range(MAX_WAITING):
        go = threading.Event()
        waiting = asyncio.ensure_future(large.run("a", go.wait))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go.set()
    deadline_s = asyncio.get_running_loop().time() + 60
    while large._waiting["a"] and asyncio.get_running_loop().time() < deadline_s:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    assert not large._waiting["a"]
