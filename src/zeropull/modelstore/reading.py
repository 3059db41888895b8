"""Reads ranges of objects however often the connection breaks off, and in order if need be."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass

from zeropull.errors import Unavailable
from zeropull.modelstore.protocol import ObjectFacts, ObjectSource

PART_BYTES = 8 << 20
# The parts that are on their way at the end arrive together, and what unpacks them in order has
# them all before it then: small ones there cost a few requests and save a quarter of a second.
LAST_PART_BYTES = 2 << 20
TAPERED_BYTES = 32 << 20
# Waits before the next try; a try that brought bytes starts the row again.
_RETRY_DELAYS_S = (0.1, 0.5, 1.0, 2.0, 4.0)

OnBytes = Callable[[int], None]
Turn = Callable[[], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True)
class Reading:
    """At most `connections` parts are read at the same time, each while it holds a `turn`."""

    connections: int
    turn: Turn
    on_bytes: OnBytes


def parts_of(facts: ObjectFacts) -> Iterator[tuple[int, int]]:
    """Start and end of the parts that are read at the same time; one when there are no ranges."""
    if not facts.has_ranges:
        if facts.size:
            yield 0, facts.size
        return
    start = 0
    while start < facts.size:
        is_last = facts.size - start <= TAPERED_BYTES < facts.size
        end = min(start + (LAST_PART_BYTES if is_last else PART_BYTES), facts.size)
        yield start, end
        start = end


async def read_resuming(
    source: ObjectSource, facts: ObjectFacts, start: int, end: int, on_bytes: OnBytes
) -> AsyncIterator[bytes]:
    """The bytes from `start` up to `end`, each exactly once.

    Raises:
        Unavailable: the last of several tries without a single byte failed.
    """
    at, failures = start, 0
    while at < end:
        try:
            async with aclosing(source.stream(facts, at, end)) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    piece = bytes(chunk[: end - at])
                    at += len(piece)
                    failures = 0
                    on_bytes(len(piece))
                    yield piece
            if at < end:
                raise Unavailable(f"{facts.key} broke off at byte {at:,} of {facts.size:,}")
        except Unavailable:
            if failures == len(_RETRY_DELAYS_S):
                raise
            await asyncio.sleep(_RETRY_DELAYS_S[failures])
            failures += 1


async def read_in_order(
    source: ObjectSource,
    facts: ObjectFacts,
    reading: Reading,
    put: Callable[[bytes], Awaitable[None]],
) -> None:
    """Hand the whole object to `put` in order."""
    if not facts.has_ranges or facts.size <= PART_BYTES:
        async with reading.turn():
            async for chunk in read_resuming(source, facts, 0, facts.size, reading.on_bytes):
                await put(chunk)
        return

    async def read(start: int, end: int) -> bytes:
        part = bytearray()
        async with reading.turn():
            async for chunk in read_resuming(source, facts, start, end, reading.on_bytes):
                part += chunk
        return bytes(part)

    async with asyncio.TaskGroup() as group:
        window: deque[asyncio.Task[bytes]] = deque()
        for start, end in parts_of(facts):
            window.append(group.create_task(read(start, end)))
            if len(window) >= reading.connections:
                await put(await window.popleft())
        while window:
            await put(await window.popleft())
