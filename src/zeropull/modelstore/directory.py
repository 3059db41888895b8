"""A bucket that the configuration maps to a local directory.

The server reads it as root, and others may write to it: whatever a key or a link in it says, what
is opened lies beneath the directory (openat2(2), `zeropull.linux.files`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from zeropull.errors import AccessDenied, ArtifactError, NotFound, Unavailable
from zeropull.linux.files import open_beneath
from zeropull.modelstore.protocol import Digest, ObjectFacts
from zeropull.modelstore.s3 import changed

_CHUNK_BYTES = 4 << 20
_MAX_DEPTH = 100  # of folders in one another, which links can make endless
# A FIFO or a device is not waited for: what it is, is looked at first.
_READ = os.O_RDONLY | os.O_NONBLOCK
_LEADS_OUT = frozenset({errno.EXDEV, errno.ELOOP})


class DirectoryObjects:
    """Keys are paths below the directory; size and time of change stand in for an ETag."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def head(self, key: str) -> ObjectFacts:
        return await asyncio.to_thread(self._facts, key)

    async def list_under(self, prefix: str) -> list[ObjectFacts]:
        return await asyncio.to_thread(self._list, prefix)

    async def digest(self, facts: ObjectFacts) -> Digest | None:
        return None

    async def stream(self, facts: ObjectFacts, start: int, end: int) -> AsyncIterator[bytes]:
        with self._opened(facts.key, _READ) as descriptor:
            if self._facts_of(facts.key, descriptor).etag != facts.etag:
                raise changed(str(self._directory / facts.key))
            at = start
            while at < end:
                wanted = min(_CHUNK_BYTES, end - at)
                with self._translated(facts.key):
                    chunk = await asyncio.to_thread(os.pread, descriptor, wanted, at)
                if not chunk:
                    raise changed(str(self._directory / facts.key))
                at += len(chunk)
                yield chunk

    async def close(self) -> None:
        pass

    def _facts(self, key: str) -> ObjectFacts:
        if not key or not _is_path(key):
            raise ArtifactError(f"{key!r} is not a key below {self._directory}")
        with self._opened(key, os.O_PATH) as descriptor:
            return self._facts_of(key, descriptor)

    def _facts_of(self, key: str, descriptor: int) -> ObjectFacts:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise NotFound(
                f"{self._directory / key} is not a file: check the key, or give a prefix ending "
                "in /"
            )
        return ObjectFacts(key, facts.st_size, f'"{facts.st_mtime_ns:x}-{facts.st_size:x}"')

    def _list(self, prefix: str) -> list[ObjectFacts]:
        # An empty part at the beginning would make it an absolute path.
        if prefix and not _is_path(prefix.removesuffix("/")):
            raise ArtifactError(f"{prefix!r} is not a prefix below {self._directory}")
        found: list[ObjectFacts] = []
        waiting = [prefix]
        while waiting:
            folder = waiting.pop()
            if folder.count("/") - prefix.count("/") > _MAX_DEPTH:
                raise ArtifactError(
                    f"{self._directory / folder} has more than {_MAX_DEPTH} folders above it: a "
                    "link leads back to one of them"
                )
            for key, is_folder in self._entries(folder):
                if is_folder:
                    waiting.append(f"{key}/")
                else:
                    found.append(self._facts(key))
        return sorted(found, key=lambda facts: facts.key)

    def _entries(self, folder: str) -> list[tuple[str, bool]]:
        """Keys of what is in a folder, each with whether it is a folder itself; nothing where
        there is no such folder, as under a prefix that no object has."""
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY
            with self._opened(folder or ".", flags) as opened, os.scandir(opened) as found:
                names = [entry.name for entry in found]
        except NotFound:
            return []
        entries = []
        for name in names:
            key = f"{folder}{name}"
            with self._opened(key, os.O_PATH) as descriptor:
                entries.append((key, stat.S_ISDIR(os.fstat(descriptor).st_mode)))
        return entries

    @contextlib.contextmanager
    def _opened(self, key: str, flags: int) -> Iterator[int]:
        with self._translated(key):
            root = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                descriptor = open_beneath(root, key, flags, follow_links=True)
            finally:
                os.close(root)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        path = self._directory / key
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(f"{path} does not exist: check the key") from error
        except PermissionError as error:
            raise AccessDenied(f"{path} may not be read by this user") from error
        except OSError as error:
            if error.errno in _LEADS_OUT:
                raise AccessDenied(
                    f"{path} leads out of {self._directory} by a link, as every absolute one does, "
                    "or in a circle: refused. Put the file itself there"
                ) from error
            raise Unavailable(f"{path} cannot be read: {error.strerror}") from error


def _is_path(key: str) -> bool:
    return "\0" not in key and not any(part in {"", ".", ".."} for part in key.split("/"))
