"""Short paths under which snapshots lie as lower directories of an overlay.

All mount options together must fit one page, so 128 lowers need names of a few bytes. A cached
layer is mounted at `<mounts>/<id of its snapshot>`, one that whole images share at
`<mounts>/l<number>`; an ordinary snapshot's directory is bound there. A symbolic link would do for
an overlay, but containerd maps IDs of the folder that all lowers have in common, recursively, and
a link leads out of that.
Nothing here is durable: after a reboot each is made again when it is first needed.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from zeropull.errors import Unavailable
from zeropull.layers.mount import mount_layer, unmount
from zeropull.linux.mounts import bind, mounts_below


class Lowers:
    """Owns everything under one directory. The caller serialises all calls."""

    def __init__(self, directory: Path, *, use_loop: bool | None = None) -> None:
        """`use_loop` as in `mount_layer`."""
        self._directory = directory
        self._use_loop = use_loop
        self._ready: set[str] = set()
        self._mounted: set[str] = set()
        self._bound: set[str] = set()

    def open(self, layers: set[str], bound: set[str]) -> int:
        """Adopt what is mounted from before: names of served `layers`, and `bound` names of
        ordinary snapshots. Undo what has neither. Returns the number of mounts undone."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._directory.chmod(0o700)
        mounted = _mounts_under(self._directory)
        undone = 0
        for name in mounted:
            if name in layers:
                self._mounted.add(name)
            elif name in bound:
                self._bound.add(name)
            else:
                _detach(self._directory / name)
                undone += 1
        self._ready = self._mounted | self._bound
        for entry in list(self._directory.iterdir()):
            if entry.name not in self._ready:
                _remove_entry(entry)
        return undone

    def path(self, name: str) -> Path:
        return self._directory / name

    def is_ready(self, name: str) -> bool:
        return name in self._ready

    def mount(self, name: str, layer: Path) -> None:
        """Mount a verified layer. Raises as `mount_layer` does."""
        target = self.path(name)
        target.mkdir(exist_ok=True)
        try:
            mount_layer(layer, target, use_loop=self._use_loop)
        except BaseException:
            _remove_entry(target)
            raise
        self._mounted.add(name)
        self._ready.add(name)

    def bind(self, name: str, directory: Path) -> None:
        """Give an ordinary snapshot's directory its short name. Idempotent."""
        if name in self._ready:
            return
        target = self.path(name)
        target.mkdir(exist_ok=True)
        try:
            bind(directory, target)
        except BaseException:
            _remove_entry(target)
            raise
        self._bound.add(name)
        self._ready.add(name)

    def release(self, name: str) -> bool:
        """Forget the path; True when a layer was unmounted. Idempotent.

        Overlays over the layer hold it by themselves, so this never waits for a container.
        """
        self._ready.discard(name)
        was_layer = name in self._mounted
        if was_layer or name in self._bound:
            _detach(self.path(name))
            self._mounted.discard(name)
            self._bound.discard(name)
        _remove_entry(self.path(name))
        return was_layer


def _detach(target: Path) -> None:
    try:
        unmount(target)
    except Unavailable:
        # Somebody's working directory is in there: out of sight now, gone when they leave.
        unmount(target, lazy=True)


def _mounts_under(directory: Path) -> list[str]:
    """Names of mount points right below `directory`, the newest first; one mounted over twice
    stands there twice."""
    real = directory.resolve()
    return [mount.target.name for mount in mounts_below(real) if mount.target.parent == real]


def _remove_entry(entry: Path) -> None:
    with suppress(FileNotFoundError):
        if entry.is_symlink():
            entry.unlink()
        else:
            with suppress(OSError):
                entry.rmdir()
