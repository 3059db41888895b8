"""Ends copies that fill the disk: what their containers write lies on the disk of everybody.

A container's own files (its overlay's upper directory) count against `copy_disk_bytes`. Beside that
the disk has a reserve: when less is free, the copy that grows is ended, long before the others
cannot write any more. A look at the free bytes costs nothing and is taken twice a second; walking
the directories takes at most `_WALK_SHARE` of the time while there is room.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from zeropull.nodeagent.disk import used_below
from zeropull.telemetry import get_logger

POLL_S = 0.5
MEASURE_S = 5.0  # between two walks while there is room
RESERVE_SHARE = 0.05  # of the disk, at most: the reserve of a small disk is small
GROWN_BYTES = 16 << 20  # between two looks: such a copy fills the disk
LARGE_BYTES = 256 << 20  # smaller ones are never ended for the sake of the disk
_WALK_SHARE = 0.02

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DiskState:
    """Bytes that are free, and that shall be."""

    free_bytes: int
    reserve_bytes: int

    @property
    def is_low(self) -> bool:
        return self.free_bytes < self.reserve_bytes


def plan_ends(
    used: Mapping[str, int],
    before: Mapping[str, int],
    disk: DiskState,
    limit_bytes: int | None,
) -> dict[str, str]:
    """Copies that are to be ended, with the reason. `used` and `before`: bytes by copy, now and at
    the look before. Pure."""
    ends: dict[str, str] = {}
    for copy_id, size in used.items():
        grown = size - before.get(copy_id, size)
        if limit_bytes is not None and size > limit_bytes:
            ends[copy_id] = (
                f"the container has written {size:,} bytes to its own files, and a copy may have "
                f"{limit_bytes:,}: write less, or allow more with fleet.copy_disk_bytes"
            )
        elif disk.is_low and size >= LARGE_BYTES and grown >= GROWN_BYTES:
            ends[copy_id] = (
                f"the container fills the disk: it has written {size:,} bytes, and of the disk "
                f"{disk.free_bytes:,} are free, less than the reserve of {disk.reserve_bytes:,} "
                "(fleet.disk_reserve_bytes): write less, or use a larger disk"
            )
    return ends


@dataclass(slots=True)
class WritableLayers:
    """`layers` gives the directory that each running copy writes to; `end(copy_id, reason)` ends
    one. `disk_dir` lies on the disk that is watched."""

    disk_dir: Path
    limit_bytes: int | None
    reserve_bytes: int
    layers: Callable[[], Awaitable[Mapping[str, Path]]]
    end: Callable[[str, str], None]
    _before: dict[str, int] = field(default_factory=dict)
    _measured_s: float = 0.0
    _took_s: float = 0.0

    async def run(self) -> None:
        while True:
            await self.look_once()
            await asyncio.sleep(POLL_S)

    async def look_once(self) -> None:
        """Measure when it is time, or when the disk is low, and end who must not go on."""
        disk = disk_state(self.disk_dir, self.reserve_bytes)
        now_s = time.monotonic()
        pause_s = max(MEASURE_S, self._took_s / _WALK_SHARE)
        if not disk.is_low and now_s - self._measured_s < pause_s:
            return
        layers = await self.layers()
        used = {
            copy_id: await asyncio.to_thread(used_below, layer)
            for copy_id, layer in layers.items()
            if layer.is_dir()
        }
        self._measured_s = time.monotonic()
        self._took_s = self._measured_s - now_s
        for copy_id, reason in plan_ends(used, self._before, disk, self.limit_bytes).items():
            log.error("a copy fills the disk and is ended", copy_id=copy_id, reason=reason)
            self.end(copy_id, reason)
        self._before = used


def disk_state(folder: Path, reserve_bytes: int) -> DiskState:
    """Of the file system that `folder` is on."""
    status = os.statvfs(folder)
    whole = status.f_blocks * status.f_frsize
    reserve = min(reserve_bytes, int(whole * RESERVE_SHARE))
    return DiskState(status.f_bavail * status.f_frsize, reserve)
