from __future__ import annotations

import ctypes
import errno
from pathlib import Path

import pytest

from zeropull.linux import libc


def test_an_error_carries_the_number_the_text_and_the_file() -> None:
    missing = Path("/does/not/exist")
    with pytest.raises(FileNotFoundError, match="No such file or directory") as caught:
        libc.call("rmdir", str(missing).encode(), about=missing)
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == str(missing)


def test_a_system_call_by_its_number_fails_in_the_same_way() -> None:
    with pytest.raises(OSError, match="not implemented"):
        libc.syscall(100_000)


def test_a_function_that_the_library_lacks_is_named() -> None:
    with pytest.raises(AttributeError, match="no_such_function"):
        libc.call("no_such_function")


def test_a_typed_function_keeps_the_width_of_its_result() -> None:
    widen = libc.typed("llabs", ctypes.c_longlong, ctypes.c_longlong)
    assert widen(-(1 << 40)) == 1 << 40
