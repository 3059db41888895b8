"""Short paths under which snapshots lie as lower directories of an overlay.

All mount options together must fit one page, so 128 lowers need names of a few bytes. A cached
layer is mounted at `<mounts>/<id>`; an ordinary snapshot's directory gets a symbolic link there.
Nothing here is durable: after a reboot each is made again when it is first needed.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from zeropull.errors import Unavailable
from zeropull.imagecache.mount import mount_layer, unmount

_OCTAL = re.compile(r"\\([0-7]{3})")


class Lowers:
    """Owns everything under one directory. The caller serialises all calls."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ready: set[int] = set()
        self._mounted: set[int] = set()

    def open(self, known: set[int]) -> int:
        """Adopt what is mounted from before; undo what belongs to no known snapshot. Returns the
        number of mounts undone."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._directory.chmod(0o700)
        mounted = _mounts_under(self._directory)
        undone = 0
        for name in mounted:
            if name.isdigit() and int(name) in known:
                self._mounted.add(int(name))
            else:
                _detach(self._directory / name)
                undone += 1
        self._ready = set(self._mounted)
        for entry in list(self._directory.iterdir()):
            if not (entry.name.isdigit() and int(entry.name) in self._mounted):
                _remove_entry(entry)
        return undone

    def path(self, snapshot_id: int) -> Path:
        return self._directory / str(snapshot_id)

    def is_ready(self, snapshot_id: int) -> bool:
        return snapshot_id in self._ready

    def mount(self, snapshot_id: int, layer: Path) -> None:
        """Mount a verified layer for the snapshot. Raises as `mount_layer` does."""
        target = self.path(snapshot_id)
        target.mkdir(exist_ok=True)
        try:
            mount_layer(layer, target)
        except BaseException:
            _remove_entry(target)
            raise
        self._mounted.add(snapshot_id)
        self._ready.add(snapshot_id)

    def link(self, snapshot_id: int, directory: Path) -> None:
        """Give an ordinary snapshot's directory its short name."""
        with suppress(FileExistsError):
            self.path(snapshot_id).symlink_to(directory)
        self._ready.add(snapshot_id)

    def release(self, snapshot_id: int) -> bool:
        """Forget the snapshot's path; True when a layer was unmounted. Idempotent.

        Overlays over the layer hold it by themselves, so this never waits for a container.
        """
        self._ready.discard(snapshot_id)
        was_mounted = snapshot_id in self._mounted
        if was_mounted:
            _detach(self.path(snapshot_id))
            self._mounted.discard(snapshot_id)
        _remove_entry(self.path(snapshot_id))
        return was_mounted


def _detach(target: Path) -> None:
    try:
        unmount(target)
    except Unavailable:
        # Somebody's working directory is in there: out of sight now, gone when they leave.
        unmount(target, lazy=True)


def _mounts_under(directory: Path) -> list[str]:
    """Names of mount points right below `directory`, the newest first; one mounted over twice
    stands there twice."""
    prefix = f"{directory.resolve()}/"
    found: list[str] = []
    with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            point = _OCTAL.sub(lambda match: chr(int(match[1], 8)), line.split(" ")[4])
            if point.startswith(prefix):
                found.append(point[len(prefix) :])
    return found[::-1]


def _remove_entry(entry: Path) -> None:
    with suppress(FileNotFoundError):
        if entry.is_symlink():
            entry.unlink()
        else:
            with suppress(OSError):
                entry.rmdir()
