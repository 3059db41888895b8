"""Pull the layers of an image in one pass, and publish them.

Layers are made side by side; those that take something from the layers below, directories that they
only imply or files that their hard links name, are finished bottom-up, and all are published so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from zeropull.erofs.tar_layer import LayerLimits
from zeropull.errors import DiskFull, ZeropullError
from zeropull.layers.data_file import disk_error
from zeropull.layers.layout import (
    LAYER_FILE,
    TEMPORARY_PREFIX,
    layer_directory,
)
from zeropull.layers.maker_pool import Maker, MakerPool, PooledMaker
from zeropull.layers.making import LayerJob, MadeLayer
from zeropull.layers.thread_switching import switch_threads_often
from zeropull.linux.files import sync_folder
from zeropull.oci.digests import hex_of
from zeropull.oci.images import ResolvedImage
from zeropull.registry.blobs import BlobSource, open_blob

# Each layer in work holds some 60 MB: parts of the blob, inflated buffers, data buffers.
LAYERS_AT_ONCE_MAX = 4
LARGE_SHARE = 8  # an eighth of all bytes, and more, is a large layer
PROCESSES_WORTH_BYTES = 32 << 20  # a smaller pull is over sooner than processes are there
PROGRESS_INTERVAL_S = 0.2

_T = TypeVar("_T")

OpenBlob = Callable[
    [BlobSource, threading.Event, Callable[[int], None]],
    AbstractContextManager[Iterator[memoryview]],
]


@dataclass(frozen=True, slots=True)
class PullProgress:
    """Whole pull: layers published, compressed bytes received and expected, data bytes of what is
    published."""

    layers_done: int
    layers_total: int
    registry_bytes: int
    registry_bytes_total: int
    data_bytes: int


@dataclass(frozen=True, slots=True)
class PullResult:
    registry_bytes: int
    data_bytes: int
    chain_ids: tuple[str, ...]


@dataclass(slots=True)
class _Pull:
    """What the layers of one pull share. Threads count the registry's bytes under `lock`."""

    image: ResolvedImage
    chain_ids: list[str]  # of the image, which computes them anew each time
    missing: frozenset[int]
    layer_store: Path
    limits: LayerLimits
    open_blob: OpenBlob
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    registry_bytes: int = 0
    data_bytes: int = 0
    layers_done: int = 0
    temporary: list[Path] = field(default_factory=list)
    running: set[asyncio.Future[Any]] = field(default_factory=set)

    async def in_thread(self, work: Callable[[], _T]) -> _T:
        """A thread is waited for by `_settle` if not here."""
        future = asyncio.get_running_loop().run_in_executor(None, work)
        self.running.add(future)
        result = await asyncio.shield(future)
        self.running.discard(future)
        return result

    def count_registry(self, received: int) -> None:
        with self.lock:
            self.registry_bytes += received

    def job(self, index: int) -> LayerJob:
        image, chain_ids = self.image, self.chain_ids
        name = f"{TEMPORARY_PREFIX}{hex_of(chain_ids[index])[:12]}-{secrets.token_hex(4)}"
        return LayerJob(
            directory=str(self.layer_store / name),
            chain_id=chain_ids[index],
            parent_chain_id=chain_ids[index - 1] if index else "",
            diff_id=image.diff_ids[index],
            blob_digest=image.layers[index].digest,
            limits=self.limits,
        )


def open_registry_blob(
    source: BlobSource, stop: threading.Event, on_bytes: Callable[[int], None]
) -> AbstractContextManager[Iterator[memoryview]]:
    return open_blob(source, stop=stop, on_bytes=on_bytes)


async def pull_layers(
    image: ResolvedImage,
    missing: list[int],
    sources: list[BlobSource],
    layer_store: Path,
    parents_available: Callable[[str], Path | None],
    progress: Callable[[PullProgress], None] = lambda _: None,
    *,
    limits: LayerLimits | None = None,
    open_blob: OpenBlob = open_registry_blob,
    in_processes: bool | None = None,
) -> PullResult:
    """Bring the layers with the indexes `missing` (bottom-up, `sources` in the same order) to
    `layer_store`, each published by rename as soon as it and the missing ones below it are ready.

    `parents_available` gives the directory of a layer that is not missing. `progress` is called on
    the event loop. `in_processes`: whether layers are made in processes of their own; None: where
    there is enough to do. Cancelled or failed, it leaves what was published, and nothing else.

    Raises:
        IntegrityError: a blob or a layer is not what its digest says, or a layer below went away.
        ImageError: a layer that can never be used.
        DiskFull: with the arithmetic.
        Unavailable, NotFound, AccessDenied: from the registry.
    """
    layer_store = layer_store.absolute()  # other processes have other working directories
    layer_store.mkdir(parents=True, exist_ok=True)
    _check_room(image, missing, layer_store)
    total = sum(image.layers[index].size for index in missing)
    if in_processes is None:
        in_processes = total >= PROCESSES_WORTH_BYTES
    pull = _Pull(
        image, image.chain_ids, frozenset(missing), layer_store, limits or LayerLimits(), open_blob
    )
    publishing = _Publishing(pull, missing, parents_available)

    async def one_layer(index: int, source: BlobSource) -> None:
        job = pull.job(index)
        async with makers.idle() as maker:
            async with maker.lock:
                made = await pull.in_thread(lambda: _make(pull, maker.maker, job, source))
            await publishing.add(index, _WaitingLayer(job, maker, made))

    def report() -> None:
        progress(
            PullProgress(
                pull.layers_done, len(missing), pull.registry_bytes, total, pull.data_bytes
            )
        )

    async def report_all() -> None:
        while True:
            report()
            await asyncio.sleep(PROGRESS_INTERVAL_S)

    in_order = sorted(
        zip(missing, sources, strict=True),
        key=lambda pair: (-_head_start(image.layers[pair[0]].size, total), pair[0]),
    )
    makers = MakerPool(in_processes)
    switch_threads_often()
    try:
        makers.start(min(len(missing), LAYERS_AT_ONCE_MAX, os.cpu_count() or 1), pull.stop)
        async with asyncio.TaskGroup() as group:
            reporter = group.create_task(report_all())
            layers = [group.create_task(one_layer(*pair)) for pair in in_order]
            for layer in layers:
                await layer
            # A layer whose name a crash takes back is pulled again: once for all is enough.
            await pull.in_thread(lambda: sync_folder(layer_store))
            reporter.cancel()
    except* ZeropullError as errors:
        raise _first(errors) from None
    finally:
        pull.stop.set()
        makers.kill()
        try:
            await _settle(pull.running)
        finally:
            makers.close()
            for directory in pull.temporary:
                shutil.rmtree(directory, ignore_errors=True)
    report()
    return PullResult(
        pull.registry_bytes, pull.data_bytes, tuple(pull.chain_ids[index] for index in missing)
    )


@dataclass(slots=True)
class _WaitingLayer:
    """A layer that is made and not published. `maker` has it in memory until it is finished."""

    job: LayerJob
    maker: PooledMaker
    made: MadeLayer


class _Publishing:
    """Finishes and publishes the layers that are made, in the image's order."""

    def __init__(
        self, pull: _Pull, missing: list[int], parents_available: Callable[[str], Path | None]
    ) -> None:
        self._pull = pull
        self._waiting = deque(missing)
        self._parents_available = parents_available
        self._made: dict[int, _WaitingLayer] = {}
        self._lock = asyncio.Lock()

    async def add(self, index: int, layer: _WaitingLayer) -> None:
        """Publish as many as can be. The layer's maker makes no other one meanwhile: what it has
        in memory goes first."""
        self._made[index] = layer
        if self._lock.locked():
            return  # the caller that publishes now finds this layer, too
        async with self._lock:
            while self._waiting and (layer_now := self._made.get(self._waiting[0])) is not None:
                if not layer_now.made.is_finished:
                    if layer_now.maker.lock.locked():
                        return  # it makes another layer, whose caller goes on here
                    await self._finish(self._waiting[0], layer_now)
                await self._publish(layer_now)
                del self._made[self._waiting.popleft()]

    async def _finish(self, index: int, layer: _WaitingLayer) -> None:
        lowers = _directories_below(self._pull, index, self._parents_available)
        maker, directory = layer.maker.maker, layer.job.directory
        async with layer.maker.lock:
            layer.made = await self._pull.in_thread(lambda: maker.finish(directory, lowers))

    async def _publish(self, layer: _WaitingLayer) -> None:
        await self._pull.in_thread(lambda: _publish(self._pull, layer.job))
        self._pull.layers_done += 1
        self._pull.data_bytes += layer.made.data_bytes


def _head_start(size: int, total: int) -> int:
    """Large layers begin first, the largest before all. The others come bottom-up: a layer whose
    turn comes before those below it are published waits for them, with its whole tree in memory."""
    return size if size * LARGE_SHARE > total else 0


def clean_layer_store(layer_store: Path) -> list[Path]:
    """Remove what a crash left of unfinished layers; returns what was removed."""
    if not layer_store.is_dir():
        return []
    left = sorted(layer_store.glob(f"{TEMPORARY_PREFIX}*"))
    for directory in left:
        shutil.rmtree(directory, ignore_errors=True)
    return left


def _make(pull: _Pull, maker: Maker, job: LayerJob, source: BlobSource) -> MadeLayer:
    directory = Path(job.directory)
    pull.temporary.append(directory)
    try:
        directory.mkdir()
    except OSError as error:
        raise disk_error(error, directory) from error
    with pull.open_blob(source, pull.stop, pull.count_registry) as blob:
        return maker.make(job, blob)


def _publish(pull: _Pull, job: LayerJob) -> None:
    directory = Path(job.directory)
    try:
        publish_layer(directory, layer_directory(pull.layer_store, job.chain_id))
    except OSError as error:
        raise disk_error(error, directory) from error


def publish_layer(directory: Path, target: Path) -> None:
    """Rename into place; a layer that is there already (equal by its name) stays."""
    try:
        directory.rename(target)
    except OSError:
        if not (target / LAYER_FILE).is_file():
            raise
        shutil.rmtree(directory)


def _directories_below(
    pull: _Pull, index: int, parents_available: Callable[[str], Path | None]
) -> list[str]:
    """The directories of the layers below, the uppermost first. A layer that has gone stands where
    it would be published: the maker looks there, and says that it went away."""
    directories = []
    for lower in reversed(range(index)):
        chain_id = pull.chain_ids[lower]
        here = layer_directory(pull.layer_store, chain_id)
        known = None if lower in pull.missing else parents_available(chain_id)
        directories.append(str((known or here).absolute()))
    return directories


def _check_room(image: ResolvedImage, missing: list[int], layer_store: Path) -> None:
    """Unpacked sizes are not known yet, but they are hardly ever below the compressed ones."""
    needed = sum(image.layers[index].size for index in missing)
    status = os.statvfs(layer_store)
    free = status.f_bavail * status.f_frsize
    if needed > free:
        raise DiskFull(
            f"{image.reference}: {len(missing)} layers have {needed} compressed bytes, "
            f"{free} bytes are free in {layer_store}"
        )


async def _settle(running: set[asyncio.Future[None]]) -> None:
    """Wait for the threads, which end soon after `stop`, however often we are cancelled."""
    cancelled = False
    while pending := [future for future in running if not future.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError:
            cancelled = True
    for future in running:
        with contextlib.suppress(BaseException):
            future.exception()
    if cancelled:
        raise asyncio.CancelledError


def _first(errors: BaseExceptionGroup[ZeropullError]) -> ZeropullError:
    """The error that began it: those of layers that were stopped for it come later."""
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            return _first(error)
        return error
    raise AssertionError("an exception group is never empty")
