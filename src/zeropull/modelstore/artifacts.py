"""Brings a model artifact into a directory: whole and verified, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from zeropull.errors import AlreadyExists, ArtifactError, DiskFull, NotFound, Unavailable
from zeropull.inflating.in_thread import InflatingInThread
from zeropull.inflating.process import WORTH_IT_BYTES, InflatingProcess
from zeropull.inflating.readers import GZIP_HEAD
from zeropull.modelstore.extracting import extract_tar_gz
from zeropull.modelstore.integrity import FileCheck
from zeropull.modelstore.naming import object_name, relative_names
from zeropull.modelstore.protocol import ObjectFacts, ObjectSource
from zeropull.modelstore.reading import (
    OnBytes,
    Reading,
    Turn,
    parts_of,
    read_in_order,
    read_resuming,
)
from zeropull.modelstore.stores import open_source
from zeropull.resources.sources import ModelArtifact

DEFAULT_CONNECTIONS = 8
_RESERVE_BYTES = 64 << 20  # left free, so that logs and the store can still be written
_DIGESTS_AT_ONCE = 4  # requests for what the store knows of its objects
_PARTIAL = ".tmp-"


@dataclass(frozen=True, slots=True)
class FetchResult:
    """`bytes` came from the store; `files` lie in the directory; `identity` keys the data cache."""

    bytes: int
    files: int
    identity: str


@dataclass(frozen=True, slots=True)
class ArtifactPlan:
    """What is downloaded: each object's facts and its path below the directory.

    `identity` changes whenever the artifact does: a digest of its URL and its objects' ETags and
    sizes."""

    objects: tuple[tuple[ObjectFacts, str], ...]
    identity: str

    @property
    def size(self) -> int:
        return sum(facts.size for facts, _ in self.objects)


async def plan_artifact(artifact: ModelArtifact) -> ArtifactPlan:
    """Asks the store what there is now, and downloads nothing.

    Raises:
        NotFound, AccessDenied, Unavailable, ArtifactError: as `fetch_artifact`.
    """
    async with _opened(artifact) as (source, key):
        return await _plan(artifact, source, key)


async def fetch_artifact(
    artifact: ModelArtifact,
    into: Path,
    *,
    plan: ArtifactPlan | None = None,
    on_size: OnBytes | None = None,
    on_bytes: OnBytes | None = None,
    connections: int = DEFAULT_CONNECTIONS,
    turn: Turn = contextlib.nullcontext,
) -> FetchResult:
    """Download to the new directory `into`, published by rename when everything is there.

    `plan`: what the store said a moment ago, which is then not asked again. A tar.gz is extracted
    while it arrives. Interrupted, nothing is left but a `.tmp-` directory after a crash. `on_size`
    gets the bytes that there are to read, `on_bytes` every count received. At most `connections`
    parts are read at the same time, each while it holds a `turn`.

    Raises:
        AlreadyExists: `into` is there.
        NotFound: no such bucket, object or prefix.
        AccessDenied, Unavailable: the store refuses, or does not answer.
        ArtifactError: truncated, damaged, unsafe, or changed meanwhile.
        DiskFull: with the arithmetic.
    """
    if into.exists():
        raise AlreadyExists(f"{into} is there already")
    reading = Reading(connections, turn, on_bytes or (lambda count: None))
    partial = into.parent / f"{_PARTIAL}{into.name}-{secrets.token_hex(4)}"
    async with _opened(artifact) as (source, key):
        plan = plan or await _plan(artifact, source, key)
        into.parent.mkdir(parents=True, exist_ok=True)
        _check_room(artifact, plan.size, into.parent)
        if on_size is not None:
            on_size(plan.size)
        try:
            partial.mkdir()
            if artifact.compression == "gzip":
                name = _shown(artifact)
                files = await _fetch_archive(source, plan, name, partial, reading)
            else:
                files = await _fetch_files(source, plan, partial, reading)
            partial.rename(into)
        except BaseExceptionGroup as group:
            raise _first(group) from group
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                free = shutil.disk_usage(into.parent).free
                raise DiskFull(
                    f"the disk of {into.parent} was full while {_shown(artifact)} was downloaded: "
                    f"{plan.size:,} bytes to download, {free:,} bytes free now. Make room"
                ) from error
            raise
        finally:
            await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)
    return FetchResult(plan.size, files, plan.identity)


@contextlib.asynccontextmanager
async def _opened(artifact: ModelArtifact) -> AsyncIterator[tuple[ObjectSource, str]]:
    source, key = open_source(artifact)
    try:
        yield source, key
    finally:
        await source.close()


async def _plan(artifact: ModelArtifact, source: ObjectSource, key: str) -> ArtifactPlan:
    if artifact.kind == "prefix":
        if artifact.compression != "none":
            raise ArtifactError(f"{_shown(artifact)}: a prefix cannot be a tar.gz")
        if key and not key.endswith("/"):
            raise ArtifactError(f"prefix {_shown(artifact)} must end in a slash")
        listed = await source.list_under(key)
        names = relative_names(key, (facts.key for facts in listed))
        objects = tuple((facts, names[facts.key]) for facts in listed if facts.key in names)
        if not objects:
            raise NotFound(f"there is nothing under {_shown(artifact)}: check the prefix")
    else:
        facts = await source.head(key)
        if artifact.etag is not None and (facts.etag or "").strip('"') != artifact.etag.strip('"'):
            raise ArtifactError(
                f"{_shown(artifact)} has ETag {facts.etag}, and the model asks for {artifact.etag}"
            )
        objects = ((facts, object_name(key) if artifact.compression == "none" else ""),)
    lines = [[artifact.url.partition("?")[0], artifact.kind, artifact.compression]]
    lines += [[facts.key, facts.etag or "", str(facts.size)] for facts, _ in objects]
    return ArtifactPlan(objects, hashlib.sha256(json.dumps(lines).encode()).hexdigest())


async def _fetch_files(
    source: ObjectSource, plan: ArtifactPlan, folder: Path, reading: Reading
) -> int:
    parts = []
    checks = {}
    for facts, name in plan.objects:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.truncate(facts.size)
        path.chmod(0o644)
        checks[path] = FileCheck(path, facts)
        parts += [(facts, path, start, end) for start, end in parts_of(facts, in_order=False)]
    waiting = iter(parts)

    async def work() -> None:
        for facts, path, start, end in waiting:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                at = start
                async with reading.turn():
                    async for chunk in read_resuming(source, facts, start, end, reading.on_bytes):
                        await asyncio.to_thread(_write_all, descriptor, chunk, at)
                        at += len(chunk)
            finally:
                os.close(descriptor)
            checks[path].arrived(start, end)

    asking = asyncio.Semaphore(_DIGESTS_AT_ONCE)

    async def compare(check: FileCheck, facts: ObjectFacts) -> None:
        async with asking:
            expected = await source.digest(facts)
        if expected is not None:
            await check.run(expected)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(reading.connections, len(parts))):
            group.create_task(work())
        for (facts, _), check in zip(plan.objects, checks.values(), strict=True):
            group.create_task(compare(check, facts))
    return len(plan.objects)


async def _fetch_archive(
    source: ObjectSource,
    plan: ArtifactPlan,
    name: str,
    folder: Path,
    reading: Reading,
) -> int:
    """`name` is what messages call the archive."""
    facts, _ = plan.objects[0]
    kind = InflatingProcess if facts.size >= WORTH_IT_BYTES else InflatingInThread
    inflating = kind(GZIP_HEAD)

    def extract() -> int:
        try:
            return extract_tar_gz(
                name, inflating.parts(), folder, check_room=lambda: _check_reserve(name, folder)
            )[0]
        finally:
            inflating.kill()  # nobody waits for room any more

    async def put(chunk: memoryview) -> None:
        try:
            await asyncio.to_thread(inflating.put, chunk)
        except Unavailable as error:
            raise _ReaderGone(error.reason) from error

    extraction = asyncio.get_running_loop().run_in_executor(None, extract)
    try:
        await read_in_order(source, facts, reading, put)
        inflating.end()
    except BaseException as error:
        inflating.kill()
        # The thread still writes below `folder`: it must have ended before that is removed.
        await asyncio.wait([extraction])
        said = extraction.exception()
        leaf = _first(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(leaf, _ReaderGone) and said is not None:
            raise said from None
        raise
    else:
        return await extraction
    finally:
        await asyncio.wait([extraction])
        inflating.close()


class _ReaderGone(Unavailable):
    """The extraction has ended early; its own error says why."""


def _write_all(descriptor: int, chunk: memoryview, offset: int) -> None:
    while chunk:
        written = os.pwrite(descriptor, chunk, offset)
        chunk, offset = chunk[written:], offset + written


def _check_room(artifact: ModelArtifact, size: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size + _RESERVE_BYTES > free:
        raise DiskFull(
            f"{_shown(artifact)} has {size:,} bytes, {_RESERVE_BYTES:,} are kept free, and "
            f"the disk of {folder} has {free:,}: make room"
        )


def _check_reserve(name: str, folder: Path) -> None:
    """An archive unpacks to any size: the disk is shared with the control plane's own state."""
    free = shutil.disk_usage(folder).free
    if free < _RESERVE_BYTES:
        raise DiskFull(
            f"{name} unpacks to more than fits: the disk of {folder.parent} has {free:,} bytes "
            f"left, of which {_RESERVE_BYTES:,} are kept free: make room"
        )


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _shown(artifact: ModelArtifact) -> str:
    """The URL for messages: a query may be a signature."""
    return artifact.url.partition("?")[0]
