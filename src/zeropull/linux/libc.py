"""Functions of the C library and system calls that Python does not wrap."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

_library = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: Any, about: Path | str | bytes | None = None) -> int:
    """Call a function that returns a negative `int`, and sets errno, when it fails.

    Python integers are passed as C `int`: wrap wider ones in a ctypes type. `about` is the file
    that the error names.

    Raises:
        OSError: as errno says.
        AttributeError: this C library has no such function.
    """
    result = int(getattr(_library, function)(*arguments))
    if result < 0:
        raise last_error(about)
    return result


def syscall(number: int, *arguments: Any, about: Path | str | bytes | None = None) -> int:
    """System call `number` of this machine's processor. Arguments and errors: as for `call`."""
    return call("syscall", ctypes.c_long(number), *arguments, about=about)


def typed(function: str, result: type[Any], *arguments: type[Any]) -> Callable[..., Any]:
    """A function with the ctypes types of its result and arguments; errors are the caller's."""
    return ctypes.CFUNCTYPE(result, *arguments, use_errno=True)((function, _library))


def last_error(about: Path | str | bytes | None = None) -> OSError:
    """What errno says about the last call of this thread."""
    code = ctypes.get_errno()
    if about is None:
        return OSError(code, os.strerror(code))
    return OSError(code, os.strerror(code), str(about) if isinstance(about, Path) else about)
