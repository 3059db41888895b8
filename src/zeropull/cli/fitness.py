"""Checks before `zeropull serve` starts anything. Each refusal is one sentence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from zeropull.errors import ConfigurationError, DiskFull, Unavailable
from zeropull.providers.local.machine import Verdict, examine, file_system_of
from zeropull.resources.settings import Settings

_UNFIT = frozenset({"overlay", "tmpfs", "ramfs"})  # no image can be mounted from files there
_ONLY_TOLD = frozenset({"overlayfs"})  # in a container, the kernel may load what is not seen here
MIN_FREE_BYTES = 256 << 20


def refuse_unfit_machine(
    settings: Settings,
    *,
    kind_of: Callable[[Path], str] = file_system_of,
    min_free_bytes: int = MIN_FREE_BYTES,
) -> None:
    """`kind_of` tells the file system of a folder.

    Raises:
        ConfigurationError: the state directory is no folder, or on a file system that cannot do.
        DiskFull: its disk has no room even for a first state.
        Unavailable: the machine lacks what nothing works without; with the remedy.
    """
    state_dir = settings.state_dir
    place = next(path for path in (state_dir, *state_dir.parents) if path.exists())
    if not place.is_dir():
        raise ConfigurationError(f"serve.state_dir = {str(state_dir)!r}: {place} is not a folder")
    kind = kind_of(place)
    if kind in _UNFIT:
        raise ConfigurationError(
            f"serve.state_dir = {str(state_dir)!r}: {place} is on {kind}, from which no image can "
            "be mounted: choose a folder on ext4, xfs or btrfs, with --state-dir or in the "
            "configuration"
        )
    free = shutil.disk_usage(place).free
    # With a state, whoever has filled the disk is to be told by it, and endpoints can be deleted.
    if free < min_free_bytes and not settings.database.exists():
        raise DiskFull(
            f"the disk of {place} has {free:,} bytes free, and at least {min_free_bytes:,} are "
            "needed to begin: make room, or choose another --state-dir"
        )
    missing = [
        f"{found.check}: {found.found}" + (f" ({found.remedy})" if found.remedy else "")
        for found in examine(settings.fleet, Path(place))
        if found.verdict is Verdict.MISSING and found.check not in _ONLY_TOLD
    ]
    if missing:
        raise Unavailable(
            f"zeropull cannot serve on this machine: {'; '.join(missing)}. "
            "`zeropull doctor` tells more"
        )
