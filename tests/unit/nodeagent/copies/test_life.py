"""A copy's life, with twins of the node's parts that fail as libraries do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from zeropull.controlapi.messages import CopyAssignment, CopyState, FailureKind
from zeropull.errors import Unavailable
from zeropull.nodeagent.copies.launching import Launcher
from zeropull.nodeagent.copies.life import CopyLife, CopyServices
from zeropull.nodeagent.copies.preparing import ArrivedImage, ArrivedModels, Preparation
from zeropull.nodeagent.failures import failing_as
from zeropull.nodeagent.images.image_on_node import ImageOnNode
from zeropull.nodeagent.records import CopyRecord
from zeropull.resources.stages import Stage

IMAGE = ImageOnNode("sha256:" + "0" * 64, "image", "overlayfs", b"{}", (), "cached", 0, 0, 0, 0)


class Panic(BaseException):
    """As pyo3's PanicException: no Exception."""


class Twin(Preparation):
    """The image is here; the models raise what they are told to."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.attempts = 0

    async def image(
        self, copy: CopyAssignment, tell: Callable[[str], None], *, plain_because: str = ""
    ) -> ArrivedImage:
        return ArrivedImage(IMAGE, False)

    async def models(
        self, copy: CopyAssignment, claim: Callable[[str], None], timeout_s: float
    ) -> ArrivedModels:
        self.attempts += 1
        with failing_as(Stage.MODEL):
            raise self.error


class NoContainers(Launcher):
    """Nothing ever starts here, so that there is nothing to tear down."""

    def __init__(self) -> None:
        pass

    async def tear_down(self, record: CopyRecord, *, grace_s: float) -> None:
        raise Unavailable("containerd is away")


def life_with(
    error: BaseException, saved: list[CopyRecord], backs_off: asyncio.Event | None = None
) -> tuple[CopyLife, Twin]:
    def save(record: CopyRecord) -> None:
        saved.append(record)
        if backs_off is not None and record.state is CopyState.BACKOFF:
            backs_off.set()

    copy = CopyAssignment("a", IMAGE.manifest_digest)
    twin = Twin(error)
    # Its clock is ahead of every next start, so that no backoff is waited for.
    services = CopyServices(twin, NoContainers(), save, clock=lambda: 1e12 * len(saved))
    return CopyLife(CopyRecord(copy, CopyState.PENDING), services), twin


@pytest.mark.parametrize(
    "error",
    [
        Panic("relative URL without a base"),
        ValueError("embedded null byte"),
        RecursionError("maximum recursion depth exceeded"),
        MemoryError("no memory"),
        BaseExceptionGroup("two", [Panic("the first of two"), ValueError("x")]),
    ],
)
async def test_an_error_that_nobody_foresaw_ends_in_failed_with_its_reason(
    error: BaseException,
) -> None:
    saved: list[CopyRecord] = []
    life, twin = life_with(error, saved)
    async with asyncio.timeout(10):
        await life.run(adopt=False)
    assert twin.attempts == 5
    assert life.record.state is CopyState.FAILED
    assert life.record.failure is FailureKind.INTERNAL
    first = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error
    assert f"{type(first).__name__}: {first}" in life.record.message
    assert "model stage" in life.record.message
    backing_off = [each for each in saved if each.state is CopyState.BACKOFF]
    assert all(str(first) in each.message for each in backing_off)


async def test_a_life_is_cancelled_between_two_attempts() -> None:
    saved: list[CopyRecord] = []
    backs_off = asyncio.Event()
    life, _ = life_with(Unavailable("the store is away"), saved, backs_off)
    task = asyncio.create_task(life.run(adopt=False))
    async with asyncio.timeout(10):
        await backs_off.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
