"""A slow volume for the image benchmark: a group of the block I/O controller whose processes
together read from the benchmark's disk at most at RATE.

Only version 1 of the controller is known here, whose groups are not hierarchical: the warm-up and
the container's first process must be in the very group before they read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

RATE = 200_000_000
_CONTROLLER = Path("/sys/fs/cgroup/blkio")
_LIMIT = "blkio.throttle.read_bps_device"


def has_slow_volumes(folder: Path) -> bool:
    return (_CONTROLLER / _LIMIT).exists() and _disk(folder) is not None


@contextlib.contextmanager
def slow_volume(name: str, folder: Path) -> Iterator[str]:
    """The group `/name`, as `cgroupsPath` has it, with the limit for the disk of `folder`."""
    group = _CONTROLLER / name
    group.mkdir()
    try:
        (group / _LIMIT).write_text(f"{_disk(folder)} {RATE}")
        yield f"/{name}"
    finally:
        for hierarchy in _CONTROLLER.parent.iterdir():  # runc makes it in all of them
            with contextlib.suppress(OSError):
                (hierarchy / name).rmdir()


def enter(group: str, pid: int) -> None:
    """Move a process with all its threads."""
    (_CONTROLLER / group.lstrip("/") / "cgroup.procs").write_text(str(pid))


def _disk(folder: Path) -> str | None:
    """The whole disk below the folder's file system, as major:minor: only disks have limits."""
    device = folder.stat().st_dev
    entry = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    if (entry / "partition").exists():
        entry = entry.parent
    with contextlib.suppress(OSError):
        return (entry / "dev").read_text().strip()
    return None
