"""The makers of a pull's layers: as many as layers are made at once, in processes or in threads."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from zeropull.layers.making import LayerMaker
from zeropull.layers.making_process import LayerProcess

Maker = LayerMaker | LayerProcess


@dataclass(slots=True)
class Place:
    """`lock`: a maker makes or finishes one layer at a time."""

    maker: Maker
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class MakerPool:
    """`in_processes`: each has a process; otherwise the thread that calls it does the work."""

    def __init__(self, in_processes: bool) -> None:
        self._in_processes = in_processes
        self._places: list[Place] = []
        self._idle: asyncio.Queue[Place] = asyncio.Queue()

    def start(self, count: int, stop: threading.Event) -> None:
        """`stop`, once set, ends what threads have under way; processes are killed."""
        for _ in range(count):
            place = Place(LayerProcess() if self._in_processes else LayerMaker(stop))
            self._places.append(place)
            self._idle.put_nowait(place)

    @contextlib.asynccontextmanager
    async def idle(self) -> AsyncIterator[Place]:
        """One that makes nothing, for as long as the caller stays inside."""
        place = await self._idle.get()
        yield place
        # Not after an error: its thread may be at work still, and the pull is over.
        self._idle.put_nowait(place)

    def kill(self) -> None:
        """Whoever waits for a process gets Unavailable."""
        for process in self._processes():
            process.kill()

    def close(self) -> None:
        """Once nobody waits any more."""
        for process in self._processes():
            process.close()

    def _processes(self) -> Iterator[LayerProcess]:
        for place in self._places:
            if isinstance(place.maker, LayerProcess):
                yield place.maker
