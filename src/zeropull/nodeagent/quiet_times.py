"""Work of a node that can wait, such as verifying blocks: after launches, and at low priority.

A launch needs the processor for its model's download and the disk for its container's start. What
runs beside it takes from both, and nobody waits for that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import threading
import time
from collections.abc import Iterator

_LOWEST_NICE = 19
_IDLE_CLASS = 3 << 13
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}

_libc = ctypes.CDLL(None, use_errno=True)


class LaunchesUnderWay:
    """The copies of a node that are on their way to serve. `note` is for the event loop, the wait
    of a `QuietWait` for threads."""

    def __init__(self) -> None:
        self._copies: set[str] = set()
        self._none = threading.Event()
        self._none.set()

    def note(self, copy_id: str, *, is_launching: bool) -> None:
        if is_launching:
            self._copies.add(copy_id)
            self._none.clear()
        else:
            self._copies.discard(copy_id)
            if not self._copies:
                self._none.set()

    def quiet_wait(self, limit_s: float) -> QuietWait:
        return QuietWait(self._none, limit_s)


class QuietWait:
    """Waits until nothing is launched, all waits together for so many seconds."""

    def __init__(self, nothing: threading.Event, limit_s: float) -> None:
        self._nothing = nothing
        self._left_s = limit_s

    def wait(self, stop: threading.Event | None = None) -> None:
        """Blocks, for a thread; until `stop` is set, too."""
        began_s = time.monotonic()
        while not self._nothing.wait(min(0.5, max(0.0, self._left_s))):
            self._left_s -= time.monotonic() - began_s
            began_s = time.monotonic()
            if self._left_s <= 0 or (stop is not None and stop.is_set()):
                return


@contextlib.contextmanager
def low_priority() -> Iterator[None]:
    """The calling thread reads only when the disk is idle, and computes when nobody else does."""
    thread = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, thread)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, _LOWEST_NICE)
    _set_io_class(thread, _IDLE_CLASS)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, before)
        _set_io_class(thread, 0)


def _set_io_class(thread: int, value: int) -> None:
    """ioprio_set(2), which no library wraps; on other machines the default class stays."""
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        _libc.syscall(number, 1, thread, value)
