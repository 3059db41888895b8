"""Finishes and publishes the layers of a pull, in the image's order.

A layer that takes something from those below is finished after they are published.
"""

from __future__ import annotations

import asyncio
import functools
import shutil
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from zeropull.layers.data_file import disk_error
from zeropull.layers.layout import LAYER_FILE, layer_directory
from zeropull.layers.maker_pool import PooledMaker
from zeropull.layers.making import LayerJob, MadeLayer

T = TypeVar("T")


class InThread(Protocol):
    """Does blocking work in a thread that the pull waits for."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]: ...


@dataclass(slots=True)
class WaitingLayer:
    """A layer that is made and not published. `maker` has it in memory until it is finished."""

    job: LayerJob
    maker: PooledMaker
    made: MadeLayer


class LayerPublisher:
    """Publishes the layers with the indexes `missing` (bottom-up) in `layer_store`, by rename.

    `chain_ids` are all of the image. `parents_available` gives the directory of a layer that is
    not missing.
    """

    def __init__(
        self,
        chain_ids: Sequence[str],
        missing: Sequence[int],
        layer_store: Path,
        parents_available: Callable[[str], Path | None],
        in_thread: InThread,
        on_published: Callable[[MadeLayer], None],
    ) -> None:
        self._chain_ids = chain_ids
        self._missing = frozenset(missing)
        self._layer_store = layer_store
        self._parents_available = parents_available
        self._in_thread = in_thread
        self._on_published = on_published
        self._next = deque(missing)
        self._made: dict[int, WaitingLayer] = {}
        self._lock = asyncio.Lock()

    async def add(self, index: int, layer: WaitingLayer) -> None:
        """Publish as many layers as can be. The layer's maker makes no other one meanwhile: what it
        has in memory goes first."""
        self._made[index] = layer
        if self._lock.locked():
            return  # the caller that publishes now finds this layer, too
        async with self._lock:
            while self._next and (layer_now := self._made.get(self._next[0])) is not None:
                if not layer_now.made.is_finished:
                    if layer_now.maker.lock.locked():
                        return  # it makes another layer, whose caller goes on here
                    await self._finish(self._next[0], layer_now)
                await self._in_thread(functools.partial(self._publish, layer_now.job))
                del self._made[self._next.popleft()]
                self._on_published(layer_now.made)

    async def _finish(self, index: int, layer: WaitingLayer) -> None:
        lowers = self._directories_below(index)
        maker, directory = layer.maker.maker, layer.job.directory
        async with layer.maker.lock:
            layer.made = await self._in_thread(lambda: maker.finish(directory, lowers))

    def _publish(self, job: LayerJob) -> None:
        directory = Path(job.directory)
        target = layer_directory(self._layer_store, job.chain_id)
        try:
            _rename_or_discard(directory, target)
        except OSError as error:
            raise disk_error(error, directory) from error

    def _directories_below(self, index: int) -> list[str]:
        """The directories of the layers below, the uppermost first. A layer that has gone stands
        where it would be published: the maker looks there, and says that it went away."""
        directories = []
        for lower in reversed(range(index)):
            chain_id = self._chain_ids[lower]
            here = layer_directory(self._layer_store, chain_id)
            known = None if lower in self._missing else self._parents_available(chain_id)
            directories.append(str((known or here).absolute()))
        return directories


def _rename_or_discard(directory: Path, target: Path) -> None:
    """A layer that is there already (equal by its name) stays."""
    try:
        directory.rename(target)
    except OSError:
        if not (target / LAYER_FILE).is_file():
            raise
        shutil.rmtree(directory)
