"""A bucket that the configuration maps to a local directory."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from zeropull.errors import AccessDenied, ArtifactError, NotFound, Unavailable
from zeropull.modelstore.protocol import ObjectFacts
from zeropull.modelstore.s3 import changed

_CHUNK_BYTES = 4 << 20


class DirectoryObjects:
    """Keys are paths below the directory; size and time of change stand in for an ETag."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def head(self, key: str) -> ObjectFacts:
        return await asyncio.to_thread(self._facts, key)

    async def list_under(self, prefix: str) -> list[ObjectFacts]:
        return await asyncio.to_thread(self._list, prefix)

    async def stream(self, facts: ObjectFacts, start: int, end: int) -> AsyncIterator[bytes]:
        with self._translated(facts.key):
            if self._facts(facts.key).etag != facts.etag:
                raise changed(str(self._directory / facts.key))
            descriptor = os.open(self._directory / facts.key, os.O_RDONLY | os.O_CLOEXEC)
        try:
            at = start
            while at < end:
                wanted = min(_CHUNK_BYTES, end - at)
                with self._translated(facts.key):
                    chunk = await asyncio.to_thread(os.pread, descriptor, wanted, at)
                if not chunk:
                    raise changed(str(self._directory / facts.key))
                at += len(chunk)
                yield chunk
        finally:
            os.close(descriptor)

    async def close(self) -> None:
        pass

    def _facts(self, key: str) -> ObjectFacts:
        if not key or any(part in {"", ".", ".."} for part in key.split("/")):
            raise ArtifactError(f"{key!r} is not a key below {self._directory}")
        path = self._directory / key
        with self._translated(key):
            facts = path.stat()
        if not path.is_file():
            raise NotFound(f"{path} is not a file: check the key, or give a prefix ending in /")
        return ObjectFacts(key, facts.st_size, f'"{facts.st_mtime_ns:x}-{facts.st_size:x}"')

    def _list(self, prefix: str) -> list[ObjectFacts]:
        # An empty part at the beginning would make it an absolute path.
        if any(part in {"", ".", ".."} for part in prefix.removesuffix("/").split("/") if prefix):
            raise ArtifactError(f"{prefix!r} is not a prefix below {self._directory}")
        found = []
        for parent, _, names in os.walk(self._directory / prefix):
            for name in names:
                key = str((Path(parent) / name).relative_to(self._directory))
                found.append(self._facts(key))
        return sorted(found, key=lambda facts: facts.key)

    @contextlib.contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        path = self._directory / key
        try:
            yield
        except FileNotFoundError as error:
            raise NotFound(f"{path} does not exist: check the key") from error
        except PermissionError as error:
            raise AccessDenied(f"{path} may not be read by this user") from error
        except OSError as error:
            raise Unavailable(f"{path} cannot be read: {error.strerror}") from error
