"""mount(2), umount2(2) and /proc/self/mountinfo (proc_pid_mountinfo(5))."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

MNT_DETACH = 2
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_SHARED = 32, 4096, 1 << 20
_READ_ONLY = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
_BUSY_RETRY_S = 0.05
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. `root` is the mounted folder within its own file system."""

    target: Path
    root: str
    type: str
    source: str
    options: frozenset[str]


def bind(source: Path, target: Path) -> None:
    """Bind `source` (a file or a folder, without what is mounted below it) to `target`."""
    _mount(source, target, _MS_BIND)


def bind_read_only(source: Path, target: Path) -> None:
    """Bind a folder of plain data: read-only, without devices, set-uid programs or any program."""
    _mount(source, target, _MS_BIND)
    try:
        _mount(None, target, _MS_REMOUNT | _MS_BIND | _READ_ONLY)
    except OSError:
        unmount(target, MNT_DETACH)
        raise


def make_shared(target: Path) -> None:
    """What is mounted below appears, and goes, in every mount namespace that has `target`."""
    _mount(None, target, _MS_SHARED)


def unmount(target: Path, flags: int = 0) -> None:
    """umount2(2). A target that is not mounted (any more) is fine.

    Raises:
        OSError: EBUSY when something still uses it.
    """
    if _libc.umount2(os.fsencode(target), flags) != 0:
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOENT):
            raise OSError(code, os.strerror(code), str(target))


def mounts_below(folder: Path) -> list[Mount]:
    """Mounts at `folder` and below it, the innermost and newest first."""
    found = [
        mount for mount in read_mounts() if mount.target == folder or folder in mount.target.parents
    ]
    found.reverse()
    return sorted(found, key=lambda mount: len(mount.target.parts), reverse=True)


def unmount_below(folder: Path, *, patience_s: float = 3.0) -> None:
    """Unmount everything at and below `folder`.

    The last process of a mount may still be on its way out: a busy mount is tried again for
    `patience_s`, and detached then, so that it goes as soon as its last user does.
    """
    deadline = time.monotonic() + patience_s
    while mounts := mounts_below(folder):
        for mount in mounts:
            try:
                unmount(mount.target)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                if time.monotonic() > deadline:
                    unmount(mount.target, MNT_DETACH)
        if mounts_below(folder):
            time.sleep(_BUSY_RETRY_S)


def read_mounts() -> list[Mount]:
    """All mounts of this mount namespace, in the order in which they were made."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))


def parse_mountinfo(text: str) -> list[Mount]:
    mounts = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, (kind, source, *_) = left.split(" "), right.split(" ")
        mounts.append(
            Mount(
                target=Path(_unescape(fields[4])),
                root=_unescape(fields[3]),
                type=kind,
                source=_unescape(source),
                options=frozenset(fields[5].split(",") + right.split(" ")[2].split(",")),
            )
        )
    return mounts


def _unescape(text: str) -> str:
    """Spaces, tabs, newlines and backslashes stand as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _mount(source: Path | None, target: Path, flags: int) -> None:
    origin = os.fsencode(source) if source is not None else None
    if _libc.mount(origin, os.fsencode(target), None, ctypes.c_ulong(flags), None) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))
