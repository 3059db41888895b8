"""Makers of layers: one caller each at a time, and no process stays."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from tests.fixtures.processes import layer_processes_of
from zeropull.layers.maker_pool import MakerPool
from zeropull.layers.making import LayerMaker
from zeropull.layers.making_process import LayerProcess


async def test_a_maker_is_lent_to_one_caller_at_a_time() -> None:
    pool = MakerPool(in_processes=False)
    pool.start(2, threading.Event())
    async with pool.idle() as first, pool.idle() as second:
        assert first is not second
        assert isinstance(first.maker, LayerMaker)
        third = asyncio.create_task(pool.idle().__aenter__())
        await asyncio.sleep(0)
        assert not third.done(), "both are lent"
    assert await third in (first, second)


async def test_a_maker_that_failed_is_not_lent_again() -> None:
    pool = MakerPool(in_processes=False)
    pool.start(1, threading.Event())
    with pytest.raises(ValueError, match="of the layer"):
        async with pool.idle():
            raise ValueError("of the layer")
    again = asyncio.create_task(pool.idle().__aenter__())
    await asyncio.sleep(0)
    assert not again.done(), "its thread may be at work still"
    again.cancel()


def test_processes_end_with_the_pool() -> None:
    before = set(layer_processes_of(os.getpid()))
    pool = MakerPool(in_processes=True)
    pool.start(2, threading.Event())
    assert len(set(layer_processes_of(os.getpid())) - before) == 2
    pool.kill()
    pool.close()
    assert set(layer_processes_of(os.getpid())) <= before


async def test_makers_in_processes_are_processes() -> None:
    pool = MakerPool(in_processes=True)
    pool.start(1, threading.Event())
    async with pool.idle() as pooled:
        assert isinstance(pooled.maker, LayerProcess)
    pool.kill()
    pool.close()
