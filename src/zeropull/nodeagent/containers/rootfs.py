"""Read single files of a container's root file system from its overlay's layers, without mounting.

Nothing of the image is trusted. Symbolic links are followed within the root only, by hand: an
absolute one begins at the image's root, and `..` never leads above it, so that a crafted image
cannot make the agent read the node's own files. Whiteouts and opaque directories hide what is below
them, as in the kernel's overlayfs (Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

_MAX_BYTES = 1 << 20
_MAX_LINKS = 40  # as in the kernel, path_resolution(7)
_MAX_PARTS = 1000  # of the path and all links together
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")


def layer_directories(mount_type: str, source: str, options: Sequence[str]) -> list[Path]:
    """Directories of an `overlay` or `bind` mount, the uppermost first."""
    if mount_type != "overlay":
        return [Path(source)]
    found: list[Path] = []
    for option in options:
        name, _, value = option.partition("=")
        if name == "upperdir":
            found.insert(0, Path(value))
        elif name == "lowerdir":
            found.extend(Path(each) for each in value.split(":"))
    return found


def read_root_file(layers: Sequence[Path], path: str) -> str:
    """The text of `path` as the container would see it, "" when there is no such plain file.

    At most 1 MiB of it. `layers` are the overlay's directories, the uppermost first.
    """
    walk = _Walk(layers)
    try:
        return walk.read(path)
    except OSError:  # a name that is too long, say: the container would not find it either
        return ""
    finally:
        walk.close()


class _Walk:
    """Walks the merged tree. It holds the descriptors of one directory only: those of its parts in
    the layers, the uppermost first."""

    def __init__(self, layers: Sequence[Path]) -> None:
        self._layers = layers
        self._names: list[str] = []  # of the directories from the root to where we are
        self._here: list[int] = []
        self._to_root()

    def close(self) -> None:
        self._move_to([])

    def read(self, path: str) -> str:
        pending = _split(path)
        links = parts = 0
        while pending:
            name = pending.pop()
            parts += 1
            if parts > _MAX_PARTS:
                return ""
            if name == "..":
                self._to_parent()
                continue
            at, mode = self._look_up(name)
            if stat.S_ISLNK(mode):
                links += 1
                if links > _MAX_LINKS:
                    return ""
                target = os.readlink(name, dir_fd=at)
                if target.startswith("/"):
                    self._to_root()
                pending += _split(target)
            elif stat.S_ISDIR(mode):
                self._enter(name)
            elif stat.S_ISREG(mode) and not pending:
                return _read(name, at)
            else:
                return ""
        return ""

    def _look_up(self, name: str) -> tuple[int, int]:
        """The part that has the name, and its mode; mode 0 when there is no such name."""
        for part in self._here:
            try:
                status = os.stat(name, dir_fd=part, follow_symlinks=False)
            except FileNotFoundError:
                continue
            return part, 0 if _is_whiteout(status) else status.st_mode
        return -1, 0

    def _enter(self, name: str) -> None:
        """Go down into a directory; a file or a whiteout hides those of the layers below it."""
        below: list[int] = []
        for part in self._here:
            try:
                below.append(_open_directory(name, part))
            except FileNotFoundError:
                continue
            except OSError:
                break
            if _is_opaque(below[-1]):
                break
        self._names.append(name)
        self._move_to(below)

    def _to_root(self) -> None:
        self._names = []
        self._move_to([_open_directory(layer, None) for layer in self._layers if layer.is_dir()])

    def _to_parent(self) -> None:
        names = self._names[:-1]
        self._to_root()
        for name in names:
            self._enter(name)

    def _move_to(self, parts: list[int]) -> None:
        for part in self._here:
            os.close(part)
        self._here = parts


def _open_directory(name: Path | str, at: int | None) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=at)


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _split(path: str) -> list[str]:
    """Parts of a path, the last one first."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _read(name: str, at: int) -> str:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, dir_fd=at), "rb") as file:
        return file.read(_MAX_BYTES).decode(errors="replace")


def _is_opaque(directory: int) -> bool:
    for name in _OPAQUE:
        try:
            if os.getxattr(directory, name) == b"y":
                return True
        except OSError:
            continue
    return False
