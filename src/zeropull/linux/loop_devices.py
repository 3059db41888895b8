"""Block devices over files (loop(4), LOOP_CONFIGURE of Linux 5.8)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from zeropull.errors import Unavailable

_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR = 1, 4
_LOOP_CONFIG_BYTES, _LOOP_FLAGS_OFFSET = 304, 8 + 52
_LOOP_TRIES = 32


@contextlib.contextmanager
def read_only_loop_device(path: Path) -> Iterator[str]:
    """Path of a read-only loop device over the file. The device frees itself after its last user:
    a mount of it, or this context when nothing was mounted.

    Raises:
        Unavailable: the machine has none.
    """
    backing = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        device, name = _configure_loop(backing)
    except OSError as error:
        raise Unavailable(f"no loop device for {path}: {error.strerror}") from error
    finally:
        os.close(backing)
    try:
        yield name
    finally:
        os.close(device)


def _configure_loop(backing: int) -> tuple[int, str]:
    config = bytearray(_LOOP_CONFIG_BYTES)
    struct.pack_into("<I", config, 0, backing)
    struct.pack_into("<I", config, _LOOP_FLAGS_OFFSET, _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_LOOP_TRIES):
            name = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, bytes(config))
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # another process took it in between
                    raise
            else:
                return device, name
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, f"other processes took {_LOOP_TRIES} free devices in a row")
