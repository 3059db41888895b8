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
class PooledMaker:
    """A maker and its `lock`: it makes or finishes one layer at a time."""

    maker: Maker
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class MakerPool:
    """`in_processes`: each has a process; otherwise the thread that calls it does the work."""

    def __init__(self, in_processes: bool) -> None:
        self._in_processes = in_processes
        self._makers: list[PooledMaker] = []
        self._idle: asyncio.Queue[PooledMaker] = asyncio.Queue()

    def start(self, count: int, stop: threading.Event) -> None:
        """`stop`, once set, ends what threads have under way; processes are killed."""
        for _ in range(count):
            pooled = PooledMaker(LayerProcess() if self._in_processes else LayerMaker(stop))
            self._makers.append(pooled)
            self._idle.put_nowait(pooled)

    @contextlib.asynccontextmanager
    async def idle(self) -> AsyncIterator[PooledMaker]:
        """One that makes nothing, for as long as the caller stays inside."""
        pooled = await self._idle.get()
        yield pooled
        # Not after an error: its thread may be at work still, and the pull is over.
        self._idle.put_nowait(pooled)

    def kill(self) -> None:
        """End all processes now: threads that wait for one get Unavailable."""
        for process in self._processes():
            process.kill()

    def close(self) -> None:
        """Wait for the ends of all processes, once no thread waits for one any more."""
        for process in self._processes():
            process.close()

    def _processes(self) -> Iterator[LayerProcess]:
        for pooled in self._makers:
            if isinstance(pooled.maker, LayerProcess):
                yield pooled.maker
