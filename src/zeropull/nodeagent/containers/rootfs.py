"""Read single files of a container's root file system from its overlay's layers, without mounting.

Nothing of the image is trusted: no symbolic link is followed, so a crafted image cannot make the
agent read the node's own files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

_MAX_BYTES = 1 << 20
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


def read_root_file(layers: Sequence[Path], directory: str, name: str) -> str:
    """The text of /`directory`/`name` as the container would see it, "" when it has none."""
    for layer in layers:
        text, hidden = _read_in_layer(layer, directory, name)
        if text is not None:
            return text
        if hidden:
            return ""
    return ""


def _read_in_layer(layer: Path, directory: str, name: str) -> tuple[str | None, bool]:
    """The text, or None; and whether this layer hides the file in the layers below."""
    try:
        parent = os.open(layer / directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None, False
    except OSError:
        return None, True  # a whiteout, a link or a file in the directory's place
    try:
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return None, _is_opaque(parent)
        if not stat.S_ISREG(status.st_mode):
            return None, True
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=parent)
        with os.fdopen(descriptor, "rb") as file:
            return file.read(_MAX_BYTES).decode(errors="replace"), True
    finally:
        os.close(parent)


def _is_opaque(directory: int) -> bool:
    for name in _OPAQUE:
        try:
            if os.getxattr(directory, name) == b"y":
                return True
        except OSError:
            continue
    return False
