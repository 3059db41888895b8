"""Traits of the calling process and thread: what ends them, what they may do, who goes first."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from zeropull.linux import libc

CAP_SYS_RESOURCE = 24  # capabilities(7): limits and oom scores beyond one's own
_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LOWEST_NICE = 19
_AHEAD_NICE = -5
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_IOPRIO_WHO_PROCESS = 1
_DEFAULT_CLASS, _IDLE_CLASS = 0, 3 << 13


def die_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when the thread that started it ends
    (PR_SET_PDEATHSIG of prctl(2)). For `preexec_fn`: it keeps what exec does."""
    libc.call("prctl", _PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def has_capability(number: int) -> bool:
    """True when this process has the capability now, by CapEff of proc_pid_status(5)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def keep_freed_memory(kept_bytes: int) -> None:
    """Let malloc keep what is freed for its next use, up to `kept_bytes`, instead of giving it
    back to the kernel (mallopt(3)). Does nothing where the C library is not glibc."""
    with contextlib.suppress(AttributeError):
        libc.call("mallopt", _M_TRIM_THRESHOLD, kept_bytes)
        libc.call("mallopt", _M_MMAP_THRESHOLD, kept_bytes // 2)


def show_command_line(words: list[str]) -> None:
    """Make `words` the command line that `ps` shows.

    They are written over those with which the process was started, and cut to their length.
    """
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, proc_pid_stat(5)
    size = max(0, end - start)
    line = "\0".join(words).encode()[: size - 1] if size else b""
    ctypes.memmove(start, line.ljust(size, b"\0"), size)


def ahead_of_others() -> None:
    """The calling thread, or process if it has one thread, computes before what waits for it. Only
    root can ask for that; for others nothing changes."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _AHEAD_NICE)


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
        _set_io_class(thread, _DEFAULT_CLASS)


def _set_io_class(thread: int, value: int) -> None:
    """ioprio_set(2); on processors whose number for it we do not know, the class stays."""
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        with contextlib.suppress(OSError):
            libc.syscall(number, _IOPRIO_WHO_PROCESS, thread, value)


def machine_pids() -> int:
    """How many tasks (processes and threads) this machine can have at a time."""
    kernel = Path("/proc/sys/kernel")
    return min(int((kernel / name).read_text()) for name in ("pid_max", "threads-max"))
