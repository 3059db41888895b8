"""A copy whose image turns out damaged gets a new container, whenever that is found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from zeropull.controlapi.messages import CopyAssignment, CopyState, FailureKind
from zeropull.nodeagent.copies.launching import Launcher
from zeropull.nodeagent.copies.life import CopyLife, CopyServices
from zeropull.nodeagent.copies.preparing import ArrivedImage, ArrivedModels, Preparation
from zeropull.nodeagent.failures import Failure
from zeropull.nodeagent.images.arriving_volumes import Arrival
from zeropull.nodeagent.images.image_on_node import ImageOnNode
from zeropull.nodeagent.records import CopyRecord

DAMAGED = Failure(FailureKind.IMAGE_INTEGRITY, "a layer is damaged", retry=True)
DIGEST = "sha256:" + "1" * 64


class NodeInMemory:
    """No models, and containers that never end and never answer. `on_image`, `on_start` are called
    in the middle of these steps, with the number of the attempt."""

    def __init__(self) -> None:
        self.images = 0
        self.starts = 0
        self.on_image: Callable[[int], None] = lambda _: None
        self.on_start: Callable[[int], None] = lambda _: None
        self.second_start = asyncio.Event()

    async def image(self, copy: CopyAssignment, *_: Any, **__: Any) -> ArrivedImage:
        self.images += 1
        self.on_image(self.images)
        image = ImageOnNode(copy.image, "name", "zeropull", b"", (), "cached", 0, 0, 0, 0)
        return ArrivedImage(image, shared=False)

    async def models(self, *_: Any) -> ArrivedModels:
        return ArrivedModels((), 0, "")

    async def arrival(self) -> Arrival:
        return Arrival()

    async def start(self, *_: Any) -> str:
        self.starts += 1
        self.on_start(self.starts)
        if self.starts == 2:
            self.second_start.set()
        return "zeropull"

    async def wait(self, copy_id: str) -> None:
        await asyncio.Event().wait()

    async def tear_down(self, record: CopyRecord, *, grace_s: float) -> None:
        pass


def life_on(node: NodeInMemory) -> tuple[CopyLife, list[CopyRecord]]:
    saved: list[CopyRecord] = []
    services = CopyServices(
        preparation=cast(Preparation, node),
        launcher=cast(Launcher, node),
        save=saved.append,
    )
    record = CopyRecord(CopyAssignment("copy", DIGEST), CopyState.PENDING, address="127.0.0.1")
    return CopyLife(record, services), saved


@pytest.mark.parametrize("during", ["image", "start"])
async def test_a_request_that_comes_before_the_container_runs_is_not_lost(during: str) -> None:
    node = NodeInMemory()
    life, saved = life_on(node)

    def damage(attempt: int) -> None:
        if attempt == 1:
            life.replace_container(DAMAGED)

    setattr(node, f"on_{during}", damage)
    running = asyncio.create_task(life.run(adopt=False))
    try:
        async with asyncio.timeout(30):
            await node.second_start.wait()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert node.images == 2, "the layers are asked for anew"
    backoff = next(record for record in saved if record.state is CopyState.BACKOFF)
    assert (backoff.failure, backoff.message) == (
        FailureKind.IMAGE_INTEGRITY,
        "a layer is damaged",
    )


async def test_a_request_is_carried_out_once() -> None:
    node = NodeInMemory()
    life, _ = life_on(node)
    node.on_start = lambda attempt: life.replace_container(DAMAGED) if attempt == 1 else None
    running = asyncio.create_task(life.run(adopt=False))
    try:
        async with asyncio.timeout(30):
            await node.second_start.wait()
            for _ in range(100):  # turns of the loop, in which a second one would be seen
                await asyncio.sleep(0)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert (node.starts, life.record.restarts) == (2, 1)
