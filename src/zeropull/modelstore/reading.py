"""Reads ranges of objects however often the connection breaks off, and in order if need be."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass

from zeropull.backoff import Backoff
from zeropull.errors import Unavailable
from zeropull.modelstore.protocol import ObjectFacts, ObjectSource

PART_BYTES = 8 << 20
# Parts that are read at the same time arrive together. What is unpacked in order has small ones at
# the beginning, so that this begins at once, and at the end, so that little is left to do after the
# last byte: at most a 32nd of what lies before or behind them.
_SMALLEST_BYTES = 1 << 20
_TAPER = 32
# Before the next try. A try that brought bytes starts the row again.
_RETRY = Backoff(first_s=0.25, limit_s=4.0)
_MOST_FAILURES = 5  # in a row: 8 s of waiting

OnBytes = Callable[[int], None]
Turn = Callable[[], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True)
class Reading:
    """At most `connections` parts are read at the same time, each while it holds a `turn`."""

    connections: int
    turn: Turn
    on_bytes: OnBytes


def parts_of(facts: ObjectFacts, *, in_order: bool) -> Iterator[tuple[int, int]]:
    """Start and end of the parts that are read at the same time; one when there are no ranges.
    `in_order`: they are unpacked as they come, and taper."""
    if not facts.has_ranges:
        if facts.size:
            yield 0, facts.size
        return
    start = 0
    while start < facts.size:
        tapered = max(_SMALLEST_BYTES, min(start, facts.size - start) // _TAPER)
        size = min(PART_BYTES, tapered) if in_order else PART_BYTES
        end = min(start + size, facts.size)
        yield start, end
        start = end


async def read_resuming(
    source: ObjectSource, facts: ObjectFacts, start: int, end: int, on_bytes: OnBytes
) -> AsyncIterator[memoryview]:
    """The bytes from `start` up to `end`, each exactly once.

    Raises:
        Unavailable: the last of several tries without a single byte failed.
    """
    at, failures = start, 0
    while at < end:
        try:
            async with aclosing(source.stream(facts, at, end)) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    # Never a copy: whoever unpacks meanwhile needs the interpreter, which a copy
                    # of megabytes holds.
                    piece = memoryview(chunk)[: end - at]
                    at += len(piece)
                    failures = 0
                    on_bytes(len(piece))
                    yield piece
            if at < end:
                raise Unavailable(f"{facts.key} broke off at byte {at:,} of {facts.size:,}")
        except Unavailable:
            if failures == _MOST_FAILURES:
                raise
            failures += 1
            await asyncio.sleep(_RETRY.after(failures))


async def read_in_order(
    source: ObjectSource,
    facts: ObjectFacts,
    reading: Reading,
    put: Callable[[memoryview], Awaitable[None]],
) -> None:
    """Hand the whole object to `put` in order."""
    if not facts.has_ranges or facts.size <= PART_BYTES:
        async with reading.turn():
            async for chunk in read_resuming(source, facts, 0, facts.size, reading.on_bytes):
                await put(chunk)
        return

    async def put_all(part: asyncio.Queue[memoryview | None]) -> None:
        while (chunk := await part.get()) is not None:
            await put(chunk)

    places = asyncio.Semaphore(reading.connections)

    async def read(start: int, end: int, part: asyncio.Queue[memoryview | None]) -> None:
        async with places, reading.turn():
            async for chunk in read_resuming(source, facts, start, end, reading.on_bytes):
                part.put_nowait(chunk)
        part.put_nowait(None)

    async with asyncio.TaskGroup() as group:
        # The first part of the window is handed on while it arrives: connections never get equal
        # shares of a link, and one that lags would hold up all that came before it was whole.
        window: deque[tuple[int, asyncio.Queue[memoryview | None]]] = deque()
        ahead_bytes = 0
        for start, end in parts_of(facts, in_order=True):
            # Small parts wait for their turn in numbers, so that no connection waits for the first
            # of them to be taken.
            while ahead_bytes + end - start > reading.connections * PART_BYTES:
                count, part = window.popleft()
                await put_all(part)
                ahead_bytes -= count
            window.append((end - start, asyncio.Queue()))
            group.create_task(read(start, end, window[-1][1]))
            ahead_bytes += end - start
        for _, part in window:
            await put_all(part)
