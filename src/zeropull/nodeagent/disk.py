"""The node's disk budget: what is used of it, and layers of the data cache given up for room.

The budget is a promise to whoever shares the disk, so it is checked before a download, with what is
known of its size, and again while it arrives, since only the compressed size is known before.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from pathlib import Path

from zeropull.errors import DiskFull
from zeropull.layers.layout import TEMPORARY_PREFIX
from zeropull.linux.removal import try_remove_tree
from zeropull.resources.node import NodeConfig
from zeropull.telemetry import get_logger

_WALK_SHARE = 0.02  # of the time: a tree of many files is not walked more often than that

log = get_logger(__name__)


class NodeDisk:
    """One node's disk folder. `in_use` names the layer directories that must stay, and
    `forget` is told of one before it goes."""

    def __init__(
        self,
        config: NodeConfig,
        in_use: Callable[[], Awaitable[Collection[str]]],
        forget: Callable[[Path], None],
    ) -> None:
        self.budget_bytes = config.disk_bytes
        self._folder = Path(config.disk_dir)
        self._layers = config.layers_dir
        self._not_ours = config.volumes_dir
        self._in_use = in_use
        self._forget = forget
        self._measured: tuple[float, float, int] | None = None  # when, how long, bytes

    async def used_bytes(self, *, fresh: bool = True) -> int:
        """What the node holds of its disk. Without `fresh`, as it was a moment ago."""
        if not fresh and self._measured is not None:
            when_s, took_s, size = self._measured
            if time.monotonic() - when_s < took_s / _WALK_SHARE:
                return size
        began_s = time.monotonic()
        size = await asyncio.to_thread(used_below, self._folder, self._not_ours)
        self._measured = time.monotonic(), time.monotonic() - began_s, size
        return size

    async def utilization(self) -> float:
        """Percent of the budget, or of the whole disk where there is no budget."""
        used = await self.used_bytes(fresh=False)
        total = self.budget_bytes or await asyncio.to_thread(_size_of_disk, self._folder)
        return 100.0 * used / total if total else 0.0

    async def make_room(self, needed_bytes: int, what: str) -> None:
        """See to it that `needed_bytes` fit, at the cost of unused layers, the oldest use first.

        Raises:
            DiskFull: they do not, with the arithmetic.
        """
        await self._make_room_on_disk(needed_bytes, what)
        if self.budget_bytes is None:
            return
        used = await self.used_bytes()
        if used + needed_bytes > self.budget_bytes:
            used -= await self._evict(used + needed_bytes - self.budget_bytes)
        if used + needed_bytes > self.budget_bytes:
            raise DiskFull(
                f"{what} needs {needed_bytes:,} bytes more, and the node's disk budget is "
                f"{self.budget_bytes:,} bytes, of which {used:,} are in use and "
                f"{max(0, self.budget_bytes - used):,} are free: allow the nodes more disk"
            )

    async def _make_room_on_disk(self, needed_bytes: int, what: str) -> None:
        """The same for the disk itself, whoever else fills it."""
        free = self._free_bytes()
        if needed_bytes > free:
            await self._evict(needed_bytes - free)
            free = self._free_bytes()
        if needed_bytes > free:
            raise DiskFull(
                f"{what} needs {needed_bytes:,} bytes, and of the disk of {self._folder} "
                f"{free:,} bytes are free: make room, or use a larger disk"
            )

    def _free_bytes(self) -> int:
        status = os.statvfs(self._folder)
        return status.f_bavail * status.f_frsize

    async def check(self, what: str) -> None:
        """For a download whose size nobody knows; measures no oftener than it may.

        Raises:
            DiskFull: the budget is used up.
        """
        if self.budget_bytes is not None and (
            await self.used_bytes(fresh=False) > self.budget_bytes
        ):
            await self.make_room(0, what)

    async def watch(self, what: str) -> DiskWatch | None:
        """For a download of unknown size into the layer store; None without a budget."""
        if self.budget_bytes is None:
            return None
        others = await self.used_bytes() - await asyncio.to_thread(_used_flat, self._layers)
        return DiskWatch(self._layers, self.budget_bytes, others, what)

    async def remove(self, names: Collection[str]) -> None:
        """Give up these directories of the layer store; the caller knows that nobody uses them."""
        doomed = []
        for name in names:
            path = self._layers / name
            if path.is_dir():
                self._forget(path)
                doomed.append(set_aside(path))
        # No await before: what a pull that begins now looks for is there as a whole or not at all.
        for path in doomed:
            await asyncio.to_thread(try_remove_tree, path)

    async def _evict(self, wanted_bytes: int) -> int:
        in_use = await self._in_use()
        freed = 0
        for path, size in await asyncio.to_thread(_by_last_use, self._layers):
            if freed >= wanted_bytes:
                break
            if path.name in in_use:
                continue
            log.info("layer evicted from the data cache", layer=path.name, bytes=size)
            self._forget(path)
            await asyncio.to_thread(_remove_at_once, path)
            freed += size
        return freed


class DiskWatch:
    """Holds one download to the budget. `others` is what everything else on the disk takes."""

    def __init__(self, layers: Path, budget_bytes: int, others: int, what: str) -> None:
        self._layers = layers
        self._budget_bytes = budget_bytes
        self._others = others
        self._what = what

    def check(self) -> None:
        """Raises:
        DiskFull: the layer store has grown over the budget.
        """
        layers = _used_flat(self._layers)
        if self._others + layers > self._budget_bytes:
            raise DiskFull(
                f"{self._what} unpacks to more than fits: the node's disk budget is "
                f"{self._budget_bytes:,} bytes, its layers have grown to {layers:,} and the rest "
                f"of the disk has {self._others:,}: allow the nodes more disk"
            )


def used_below(folder: Path, leave_out: Path | None = None) -> int:
    """Bytes on disk below `folder`, on its own file system and each linked file once."""
    total, pending, seen = 0, [folder], set[int]()
    device = folder.stat().st_dev
    while pending:
        for entry, status in _listed(pending.pop()):
            if status.st_dev != device or status.st_ino in seen:
                continue
            is_directory = entry.is_dir(follow_symlinks=False)
            if status.st_nlink > 1 and not is_directory:
                seen.add(status.st_ino)
            total += status.st_blocks * 512
            if is_directory and (leave_out is None or entry.path != str(leave_out)):
                pending.append(Path(entry.path))
    return total


def touch(layer: Path) -> None:
    """Note that the layer is used now: eviction goes by it."""
    with contextlib.suppress(OSError):
        os.utime(layer)


def _used_flat(layers: Path) -> int:
    """Of the layer store, whose directories hold files only."""
    return sum(
        status.st_blocks * 512 for folder in layers.iterdir() for _, status in _listed(folder)
    )


def _listed(folder: Path) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    """What is in a folder now; files come and go meanwhile."""
    # Among others ENAMETOOLONG, of directories that a container has nested deeper than a path goes.
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                yield entry, entry.stat(follow_symlinks=False)


def _by_last_use(layers: Path) -> list[tuple[Path, int]]:
    found = []
    for folder in layers.iterdir():
        if folder.name.startswith(TEMPORARY_PREFIX) or not folder.is_dir():
            continue
        size = sum(file.stat().st_blocks * 512 for file in folder.iterdir())
        found.append((folder.stat().st_mtime, folder, size))
    return [(folder, size) for _, folder, size in sorted(found)]


def _remove_at_once(path: Path) -> None:
    """By rename first: half a layer must never stand under its name."""
    try_remove_tree(set_aside(path))


def set_aside(path: Path) -> Path:
    """Rename a layer so that nobody finds it, on its way out; returns its new path."""
    doomed = path.with_name(f"{TEMPORARY_PREFIX}{path.name[:12]}-{secrets.token_hex(4)}")
    return path.rename(doomed)


def _size_of_disk(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_blocks * status.f_frsize
