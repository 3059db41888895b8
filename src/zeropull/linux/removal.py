"""Removes what a container can make: trees of any depth, with any names and attributes.

`shutil.rmtree` recurses once for each level, and ends at a thousand. Here the walk is a loop with a
bounded number of descriptors: a directory that lies too deep is renamed to the top of the tree and
removed from there. Names are opened beneath their directory only (openat2(2)), so that neither a
symbolic link nor a mount is ever followed, whoever changes the tree meanwhile. Immutable and
append-only files (ioctl_iflags(2)) lose these flags first.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import secrets
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from zeropull.linux.files import open_beneath

_DEPTH_MAX = 32  # as many descriptors are open at a time
_BATCH = 1024  # names in memory, of each directory
_LOOKS_MAX = 1000  # at a directory in which somebody else goes on making files
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602  # FS_IOC_GETFLAGS, FS_IOC_SETFLAGS
_IMMUTABLE, _APPEND_ONLY = 0x10, 0x20


def remove_tree(path: Path) -> None:
    """Remove `path` and everything below it; a symbolic link is removed, not followed. Idempotent.

    If one entry cannot be removed, all others still are.

    Raises:
        OSError: the first failure; EXDEV or EBUSY when something is mounted below `path`.
    """
    try:
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _Removal(parent, path.name).run()
    except FileNotFoundError:
        return
    except OSError as error:
        where = error.filename or ""
        raise OSError(error.errno, f"{error.strerror} ({where!r})", str(path)) from error
    finally:
        os.close(parent)


def try_remove_tree(path: Path) -> bool:
    """`remove_tree` for what is tried again later, or not missed; False when something is left."""
    with suppress(OSError):
        remove_tree(path)
        return True
    return False


@dataclass(slots=True)
class _Level:
    """One open directory on the way down. `name` is its own in the level above."""

    name: str
    descriptor: int
    names: list[str] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)
    looks: int = 0


class _Removal:
    def __init__(self, parent: int, name: str) -> None:
        self._parent = parent
        self._name = name
        self._levels: list[_Level] = []
        self._error: OSError | None = None
        self._prefix = f".removed-{secrets.token_hex(4)}-"
        self._numbers = itertools.count()

    def run(self) -> None:
        status = os.stat(self._name, dir_fd=self._parent, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            _unlink(self._parent, self._name)
            return
        try:
            self._go_down(self._parent, self._name)
            while self._levels:
                self._step()
        finally:
            for level in self._levels:
                os.close(level.descriptor)
        if self._error is not None:
            raise self._error

    def _step(self) -> None:
        """Remove one name of the innermost directory, go down into it, or leave the directory."""
        level = self._levels[-1]
        if not level.names and not self._look(level):
            self._leave()
            return
        name = level.names.pop()
        try:
            _unlink(level.descriptor, name)
        except IsADirectoryError:
            self._enter(level, name)
        except OSError as error:
            self._note(level, name, error)

    def _look(self, level: _Level) -> bool:
        """Read some more names; False when none is left that can be removed."""
        level.looks += 1
        if level.looks > _LOOKS_MAX:
            return False
        with os.scandir(level.descriptor) as entries:
            wanted = (entry.name for entry in entries if entry.name not in level.failed)
            level.names = list(itertools.islice(wanted, _BATCH))
        return bool(level.names)

    def _enter(self, level: _Level, name: str) -> None:
        try:
            if len(self._levels) >= _DEPTH_MAX:
                self._raise_to_top(level, name)
            else:
                self._go_down(level.descriptor, name)
        except FileNotFoundError:
            return
        except OSError as error:
            self._note(level, name, error)

    def _go_down(self, parent: int, name: str) -> None:
        try:
            descriptor = open_beneath(parent, name, _DIRECTORY)
        except OSError as error:
            if error.errno != errno.ENOSYS:  # older than Linux 5.6
                raise
            descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
        self._levels.append(_Level(name, descriptor))

    def _raise_to_top(self, level: _Level, name: str) -> None:
        """Its turn comes when the top directory is read again."""
        top = self._levels[0].descriptor
        number = next(self._numbers)

        def rename() -> None:
            os.rename(name, f"{self._prefix}{number}", src_dir_fd=level.descriptor, dst_dir_fd=top)

        try:
            rename()
        except PermissionError:
            _clear_flags(level.descriptor)
            _clear_flags(top)
            child = os.open(name, _DIRECTORY, dir_fd=level.descriptor)
            try:
                _clear_flags(child)
            finally:
                os.close(child)
            rename()

    def _leave(self) -> None:
        level = self._levels.pop()
        os.close(level.descriptor)
        above = self._levels[-1] if self._levels else None
        parent = above.descriptor if above is not None else self._parent
        try:
            _rmdir(parent, level.name)
        except FileNotFoundError:
            return
        except OSError as error:
            # The first reason is the better one: this directory is not empty because of it.
            self._note(above, level.name, error)

    def _note(self, level: _Level | None, name: str, error: OSError) -> None:
        if isinstance(error, FileNotFoundError):
            return
        if level is not None:
            level.failed.add(name)
        if self._error is None:
            self._error = OSError(error.errno, error.strerror, name)


def _unlink(directory: int, name: str) -> None:
    """Raises IsADirectoryError for a directory."""
    try:
        os.unlink(name, dir_fd=directory)
    except PermissionError:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):  # unlink(2) of POSIX says EPERM
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name) from None
        _clear_flags(directory)
        if stat.S_ISREG(status.st_mode):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.open(name, flags, dir_fd=directory)
            try:
                _clear_flags(file)
            finally:
                os.close(file)
        os.unlink(name, dir_fd=directory)


def _rmdir(parent: int, name: str) -> None:
    try:
        os.rmdir(name, dir_fd=parent)
    except PermissionError:
        _clear_flags(parent)
        directory = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            _clear_flags(directory)
        finally:
            os.close(directory)
        os.rmdir(name, dir_fd=parent)


def _clear_flags(descriptor: int) -> None:
    """Take the flags away that forbid a removal; a file system without flags is fine."""
    with suppress(OSError):
        (flags,) = struct.unpack("I", fcntl.ioctl(descriptor, _GET_FLAGS, struct.pack("I", 0)))
        if flags & (_IMMUTABLE | _APPEND_ONLY):
            cleared = flags & ~(_IMMUTABLE | _APPEND_ONLY)
            fcntl.ioctl(descriptor, _SET_FLAGS, struct.pack("I", cleared))
