"""fanotify's pre-content events: a read of a marked file waits until somebody answers it.

fanotify(7), FAN_PRE_ACCESS, Linux 6.14 and newer; needs CAP_SYS_ADMIN. The marks and the events
that wait belong to a group, which is a descriptor. When its last duplicate is closed, the kernel
allows every waiting read and drops the marks: whoever relies on the marks sees to it that some
process keeps a duplicate.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zeropull.linux import libc

_CLASS_PRE_CONTENT, _CLOEXEC, _UNLIMITED_QUEUE, _UNLIMITED_MARKS = 0x08, 0x01, 0x10, 0x20
_MARK_ADD, _MARK_REMOVE = 0x01, 0x02
_PRE_ACCESS = 0x0010_0000
_QUEUE_OVERFLOW = 0x4000
_AT_FDCWD = -100
_RANGE_RECORD = 6
_ALLOW, _DENY = 1, 2
_EVENT = struct.Struct("=IBBHQii")  # length, version, -, length of this, mask, descriptor, process
_RECORD = struct.Struct("=BBH")  # type, -, length
_RANGE = struct.Struct("=IQQ")  # -, offset, count
_ANSWER = struct.Struct("=iI")
_READ_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Access:
    """A read that waits. `number` is its descriptor in this process, by which it is answered;
    `offset` and `count` are what is read, in bytes."""

    number: int
    process: int
    offset: int
    count: int


def open_group() -> int:
    """The descriptor of a new group.

    Raises:
        OSError: EINVAL, ENOSYS: this kernel has no pre-content events; EPERM: not root.
    """
    kind = _CLASS_PRE_CONTENT | _CLOEXEC | _UNLIMITED_QUEUE | _UNLIMITED_MARKS
    flags = os.O_RDONLY | os.O_LARGEFILE | os.O_CLOEXEC
    return libc.call("fanotify_init", kind, flags, about="fanotify")


def mark(group: int, path: Path) -> None:
    """From now on, reads of the file wait for an answer. Idempotent. Raises OSError."""
    _change_mark(group, _MARK_ADD, path)


def unmark(group: int, path: Path) -> None:
    """Reads of the file go on by themselves again. Idempotent. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        _change_mark(group, _MARK_REMOVE, path)


def read_accesses(group: int) -> list[Access]:
    """Waits for at least one. Each has a descriptor of this process, which `answer` closes.

    Raises:
        OSError: the group is closed; EMFILE: too many accesses wait.
    """
    return list(_parse(os.read(group, _READ_BYTES)))


def answer(group: int, number: int, error: int = 0) -> None:
    """Let the reader go on, or fail with the errno `error`. Closes nothing; see `close`.

    Raises:
        OSError: ENOENT: nobody waits under this number.
    """
    response = _ALLOW if not error else _DENY | error << 24
    os.write(group, _ANSWER.pack(number, response))


def is_supported(folder: Path) -> bool:
    """Whether the kernel and the file system of `folder` raise such events for us."""
    try:
        group = open_group()
    except OSError:
        return False
    probe = folder / f".precontent-{os.getpid()}"
    try:
        probe.touch()
        mark(group, probe)
    except OSError:
        return False
    finally:
        os.close(group)
        probe.unlink(missing_ok=True)
    return True


def _change_mark(group: int, change: int, path: Path) -> None:
    mask, name = ctypes.c_uint64(_PRE_ACCESS), os.fsencode(path)
    libc.call("fanotify_mark", group, change, mask, _AT_FDCWD, name, about=path)


def _parse(events: bytes) -> Iterator[Access]:
    start = 0
    while start < len(events):
        length, _, _, fixed, mask, number, process = _EVENT.unpack_from(events, start)
        if mask & _QUEUE_OVERFLOW:
            raise OSError(errno.EOVERFLOW, "events of the kernel were lost")
        offset, count = 0, 1 << 62
        at = start + fixed
        while at < start + length:
            kind, _, size = _RECORD.unpack_from(events, at)
            if kind == _RANGE_RECORD:
                _, offset, count = _RANGE.unpack_from(events, at + _RECORD.size)
            at += size
        yield Access(number, process, offset, count)
        start += length
