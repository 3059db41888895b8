"""The node's data cache of model artifacts: fetched once, shared by this node's copies, evicted by
least recent use under a budget, never while a copy uses it.

N/models/<name> is one artifact; `name` hashes its full identity, so that a changed object is
another artifact. The store of the node belongs to one endpoint, as the node does.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeropull.errors import DiskFull, Unavailable
from zeropull.linux.removal import try_remove_tree
from zeropull.modelstore import ArtifactPlan, FetchResult, fetch_artifact, plan_artifact
from zeropull.nodeagent.disk import NodeDisk
from zeropull.nodeagent.link_share import MODEL_CONNECTIONS, LinkShare
from zeropull.resources.sources import ModelArtifact
from zeropull.tasks import TaskSet
from zeropull.telemetry import get_logger

# A store that answers nothing is asked again within a variant's shortest time-out, which is 60 s.
FIRST_BYTE_S = 30.0
MAX_FLIGHTS = 1000  # artifacts on their way at the same time: more than a node has copies
# Longer than the store's client needs to give up one part and resume it: what has arrived is kept.
STALL_S = 150.0
TEMPORARY_PREFIX = ".tmp-"
PRIVATE_PREFIX = "own-"  # one copy's, because caching is off

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ModelOnNode:
    """An artifact that is here. `fetched_bytes` is 0 when the node had it already."""

    name: str
    path: Path
    target: str
    fetched_bytes: int


class NodeModels:
    """Artifacts below `folder`. `in_use` names those that copies of this node need now."""

    def __init__(
        self,
        folder: Path,
        *,
        disk: NodeDisk,
        link: LinkShare,
        in_use: Callable[[], Collection[str]],
        first_byte_s: float = FIRST_BYTE_S,
    ) -> None:
        """`first_byte_s`: a store that sends nothing for so long is asked again."""
        self.fetched_bytes = 0
        self._first_byte_s = first_byte_s
        self._link = link
        self._folder = folder
        self._disk = disk
        # The other half is for images: neither may push the other out.
        self._budget_bytes = disk.budget_bytes // 2 if disk.budget_bytes else None
        self._in_use = in_use
        self._flights = TaskSet[str, ModelOnNode]("models", limit=MAX_FLIGHTS)
        self._waiting: Counter[str] = Counter()  # copies that wait for a flight, by its name
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
            try_remove_tree(leftover)

    async def ensure(
        self, artifact: ModelArtifact, *, enable_caching: bool, claim: Callable[[str], None]
    ) -> ModelOnNode:
        """The artifact on this node's disk; copies that ask at the same time share one download.

        Without `enable_caching` the copy gets one of its own, which goes when the copy has gone.
        `claim` is told the artifact's name before it is there: from then on `in_use` has to
        name it, or it may be evicted as soon as it is.

        Raises:
            NotFound, AccessDenied, ArtifactError, IntegrityError, Unavailable, DiskFull.
        """
        if not enable_caching:
            name = f"{PRIVATE_PREFIX}{secrets.token_hex(16)}"
            claim(name)
            return await self._fetch(artifact, name)
        try:
            async with asyncio.timeout(self._first_byte_s):
                plan = await plan_artifact(artifact)
        except TimeoutError as error:
            raise _silent(artifact, self._first_byte_s) from error
        name = plan.identity
        claim(name)
        while (flight := self._flights.get(name)) is not None and flight.cancelling():
            await asyncio.wait([flight])  # the copies that waited for it have gone
        if flight is not None:
            # The bytes are told by the copy that began the download.
            return dataclasses.replace(await self._join(name, flight), fetched_bytes=0)
        flight = self._flights.start(name, self._fetch(artifact, name, plan))
        return await self._join(name, flight)

    async def close(self) -> None:
        await self._flights.close()

    async def evict(self) -> None:
        """Remove what is private and unused, then the least recently used beyond the budget."""
        await asyncio.to_thread(self._evict, frozenset(self._in_use()) | set(self._flights))

    async def _join(self, name: str, flight: asyncio.Task[ModelOnNode]) -> ModelOnNode:
        """Wait for the download. It ends when the last copy that waits for it goes: one that hangs
        must not be what the next attempt waits for."""
        self._waiting[name] += 1
        try:
            return await asyncio.shield(flight)
        finally:
            self._waiting[name] -= 1
            if not self._waiting[name]:
                del self._waiting[name]
                flight.cancel()

    async def _fetch(
        self, artifact: ModelArtifact, name: str, plan: ArtifactPlan | None = None
    ) -> ModelOnNode:
        path = self._folder / name
        if path.is_dir():
            await asyncio.to_thread(os.utime, path)  # what eviction goes by
            return ModelOnNode(name, path, artifact.target, 0)
        await self.evict()
        before = self._link.shared
        limit = await self._limit(artifact)
        arrival = _Arrival(self._first_byte_s)

        def count(arrived: int) -> None:
            arrival.note(arrived)
            limit(arrived)

        with self._link.model_arrives() as expect:

            def expect_size(size: int) -> None:
                arrival.expected = size
                expect(size)

            fetched = await arrival.watch(
                fetch_artifact(
                    artifact,
                    path,
                    plan=plan,
                    on_size=expect_size,
                    on_bytes=count,
                    connections=MODEL_CONNECTIONS,
                    turn=self._link.turn,
                ),
                artifact,
            )
        path.chmod(0o755)
        self.fetched_bytes += fetched.bytes
        log.info(
            "model artifact is here",
            url=artifact.url.partition("?")[0],
            bytes=fetched.bytes,
            link=self._link.told(before),
        )
        await self.evict()
        return ModelOnNode(name, path, artifact.target, fetched.bytes)

    async def _limit(self, artifact: ModelArtifact) -> Callable[[int], None]:
        """Counts a download and ends it when the node's disk budget is used up."""
        budget, received = self._disk.budget_bytes, 0
        used = await self._disk.used_bytes() if budget is not None else 0

        def count(arrived: int) -> None:
            nonlocal received
            received += arrived
            self._link.model_bytes(arrived)
            if budget is not None and used + received > budget:
                raise DiskFull(
                    f"model artifact {artifact.url.partition('?')[0]}: {received:,} bytes have "
                    f"arrived, and the node's disk budget is {budget:,} bytes, of which {used:,} "
                    "were in use before: allow the nodes more disk"
                )

        return count

    def _evict(self, in_use: Collection[str]) -> None:
        unused: list[tuple[float, int, Path]] = []
        total = 0
        for path in self._folder.iterdir():
            if path.name.startswith(TEMPORARY_PREFIX):
                continue
            size = _size_of(path)
            total += size
            if path.name in in_use:
                continue
            if path.name.startswith(PRIVATE_PREFIX):
                try_remove_tree(path)
                total -= size
            else:
                unused.append((path.stat().st_mtime, size, path))
        for _, size, path in sorted(unused):
            if self._budget_bytes is None or total <= self._budget_bytes:
                break
            log.info("model artifact evicted", name=path.name, bytes=size)
            try_remove_tree(path)
            total -= size


class _Arrival:
    """What has arrived of one download, and when its last byte came."""

    def __init__(self, first_byte_s: float) -> None:
        self._first_byte_s = first_byte_s
        self.expected = 0  # bytes; 0 as long as nobody knows
        self._received = 0
        self._last_s = time.monotonic()

    def note(self, count: int) -> None:
        self._received += count
        self._last_s = time.monotonic()

    async def watch(
        self, download: Coroutine[Any, Any, FetchResult], artifact: ModelArtifact
    ) -> FetchResult:
        """Carry out the download, and end it when its store has fallen silent.

        Raises:
            Unavailable: no byte came for too long.
        """
        task = asyncio.ensure_future(download)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=1.0)
                limit_s = STALL_S if self._received else self._first_byte_s
                if self._is_whole or task.done():
                    break
                if time.monotonic() - self._last_s > limit_s:
                    raise _silent(artifact, limit_s)
            return await task
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    @property
    def _is_whole(self) -> bool:
        """All bytes are here; what follows is work of this node."""
        return 0 < self.expected <= self._received


def _silent(artifact: ModelArtifact, limit_s: float) -> Unavailable:
    return Unavailable(
        f"the store of {artifact.url.partition('?')[0]} sent nothing for {limit_s:g} s"
    )


def _size_of(path: Path) -> int:
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512  # noqa: PTH118
    return total
