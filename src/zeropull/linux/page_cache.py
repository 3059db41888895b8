"""What the page cache holds of a file (mincore(2))."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from pathlib import Path

from zeropull.linux.libc import last_error, typed

_mmap = typed(
    "mmap", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long
)
_munmap = typed("munmap", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_mincore = typed("mincore", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_FAILED = ctypes.c_void_p(-1).value
_LOWEST_BIT = bytes(value & 1 for value in range(256))  # the others are reserved
_ONES = re.compile(rb"\x01+")


def resident_pages(path: Path | bytes) -> list[tuple[int, int]]:
    """(first page, pages) of the stretches of a file that are in the page cache, in order.

    Raises:
        OSError: the file is a symbolic link, or cannot be read or mapped.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        if size == 0:
            return []
        address = _mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address in (None, _FAILED):
            raise last_error(path)
    finally:
        os.close(descriptor)
    states = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    try:
        if _mincore(address, size, states) != 0:
            raise last_error(path)
    finally:
        _munmap(address, size)
    present = bytes(states).translate(_LOWEST_BIT)
    return [(found.start(), found.end() - found.start()) for found in _ONES.finditer(present)]
