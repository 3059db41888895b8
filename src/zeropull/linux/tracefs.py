"""Instances of the kernel's tracing: buffers and events of one's own, which outlive their maker.

Source: the kernel's Documentation/trace/ftrace.rst, "Instances".
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from zeropull.linux.libc import syscall

TRACEFS = Path("/sys/kernel/tracing")
# An instance is busy while a process has one of its files: ours have closed them, but a process
# that another thread is about to start holds what was open when it was forked, until its exec.
_BUSY_S = 5.0
_BUSY_POLL_S = 0.01
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # the same numbers on every machine
_FSOPEN_CLOEXEC, _FSCONFIG_CMD_CREATE, _FSMOUNT_CLOEXEC = 1, 6, 1


class TraceInstance:
    """`name` must be unique on the host. `tracefs` None: where the host has mounted it, else
    through a mount of our own, which has no place in the file system and ends with the instance.
    """

    def __init__(self, name: str, tracefs: Path | None = None) -> None:
        self._name = name
        self._stack = contextlib.ExitStack()
        self._tracefs = tracefs
        self._root = tracefs or TRACEFS

    @property
    def folder(self) -> Path:
        return self._root / "instances" / self._name

    def create(self) -> None:
        """Make it, in the place of what a crash has left under its name. Raises OSError."""
        if self._tracefs is None:
            self._root = self._stack.enter_context(_tracefs())
        _remove(self.folder, _deadline())
        self.folder.mkdir()

    def remove(self) -> None:
        """Idempotent; blocks for some seconds where it stays busy, and then leaves it."""
        _remove(self.folder, _deadline())
        self._stack.close()
        self._root = self._tracefs or TRACEFS  # not by a descriptor that is closed


def remove_instances(name_start: str) -> None:
    """Remove the instances whose names begin so: what makers of them have left in a crash."""
    deadline = _deadline()
    with contextlib.suppress(OSError), _tracefs() as root:
        for folder in (root / "instances").iterdir():
            if folder.name.startswith(name_start):
                _remove(folder, deadline)


@contextlib.contextmanager
def _tracefs() -> Iterator[Path]:
    """Raises OSError where the kernel has none."""
    if (TRACEFS / "instances").is_dir():
        yield TRACEFS
        return
    mount = _mount_tracefs()
    try:
        yield Path(f"/proc/self/fd/{mount}")
    finally:
        os.close(mount)


def _deadline() -> float:
    return time.monotonic() + _BUSY_S


def _remove(folder: Path, deadline: float) -> None:
    while True:
        try:
            folder.rmdir()  # tracefs removes what is in it
        except OSError as error:
            if error.errno == errno.EBUSY and time.monotonic() < deadline:
                time.sleep(_BUSY_POLL_S)
                continue
        return


def _mount_tracefs() -> int:
    """A mount of tracefs that only its descriptor knows, by fsopen(2), fsconfig(2), fsmount(2)."""
    context = syscall(_FSOPEN, b"tracefs", _FSOPEN_CLOEXEC)
    try:
        syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return syscall(_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)
