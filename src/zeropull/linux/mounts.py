"""mount(2), umount2(2) and /proc/self/mountinfo (proc_pid_mountinfo(5))."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from zeropull.linux import libc

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_SHARED = 32, 4096, 16384, 1 << 20
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_PLAIN_DATA = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
_BUSY_RETRY_S = 0.05


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. `root` is the mounted folder within its own file system."""

    target: Path
    root: str
    type: str
    source: str
    options: frozenset[str]


def mount(
    source: Path | str | None, target: Path, kind: str = "", *, flags: int = 0, options: str = ""
) -> None:
    """mount(2): `kind` is the type of the file system, `flags` are MS_*, `options` its own.

    Raises:
        OSError: as errno says.
    """
    libc.call(
        "mount",
        None if source is None else os.fsencode(source),
        os.fsencode(target),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        os.fsencode(options) or None,
        about=target,
    )


def bind(source: Path, target: Path) -> None:
    """Bind `source` (a file or a folder, without what is mounted below it) to `target`."""
    mount(source, target, flags=MS_BIND)


def bind_read_only(source: Path, target: Path) -> None:
    """Bind a folder of plain data: read-only, without devices, set-uid programs or any program."""
    bind(source, target)
    try:
        mount(None, target, flags=MS_REMOUNT | MS_BIND | _PLAIN_DATA)
    except OSError:
        unmount(target, lazy=True)
        raise


def make_shared(target: Path) -> None:
    """What is mounted below appears, and goes, in every mount namespace that has `target`."""
    mount(None, target, flags=MS_SHARED)


def unmount(target: Path, *, lazy: bool = False) -> bool:
    """Unmount what is mounted at `target`, the newest mount first; False when nothing is.

    `lazy` takes a mount that is in use out of sight; it goes as soon as its last user does. A
    symbolic link is not followed.

    Raises:
        OSError: EBUSY when something still uses it.
    """
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    try:
        libc.call("umount2", os.fsencode(target), flags, about=target)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
        return False
    return True


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
                    unmount(mount.target, lazy=True)
        if mounts_below(folder):
            time.sleep(_BUSY_RETRY_S)


def read_mounts() -> list[Mount]:
    """All mounts of this mount namespace, in the order in which they were made."""
    return parse_mountinfo(os.fsdecode(Path("/proc/self/mountinfo").read_bytes()))


def parse_mountinfo(text: str) -> list[Mount]:
    mounts = []
    # Not by splitlines(): the kernel escapes line feeds, but no other ends of lines.
    for line in filter(None, text.split("\n")):
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
