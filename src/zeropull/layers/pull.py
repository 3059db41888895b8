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
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from zeropull.erofs.tar_layer import LayerLimits
from zeropull.errors import DiskFull, ZeropullError
from zeropull.layers.data_file import disk_error
from zeropull.layers.layout import (
    TEMPORARY_PREFIX,
)
from zeropull.layers.maker_pool import Maker, MakerPool
from zeropull.layers.making import LayerJob, MadeLayer
from zeropull.layers.publishing import LayerPublisher, WaitingLayer
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
    missing: Sequence[int]
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

    @property
    def expected_bytes(self) -> int:
        """Compressed, of all layers that are pulled."""
        return sum(self.image.layers[index].size for index in self.missing)

    @property
    def progress(self) -> PullProgress:
        return PullProgress(
            self.layers_done,
            len(self.missing),
            self.registry_bytes,
            self.expected_bytes,
            self.data_bytes,
        )

    async def in_thread(self, work: Callable[[], _T]) -> _T:
        """A thread is waited for by `_settle` if not here."""
        future = asyncio.get_running_loop().run_in_executor(None, work)
        self.running.add(future)
        result = await asyncio.shield(future)
        self.running.discard(future)
        return result

    def count_published(self, layer: MadeLayer) -> None:
        self.layers_done += 1
        self.data_bytes += layer.data_bytes

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
    pull = _Pull(image, image.chain_ids, missing, layer_store, limits or LayerLimits(), open_blob)
    if in_processes is None:
        in_processes = pull.expected_bytes >= PROCESSES_WORTH_BYTES
    makers = MakerPool(in_processes)
    switch_threads_often()
    try:
        makers.start(min(len(missing), LAYERS_AT_ONCE_MAX, os.cpu_count() or 1), pull.stop)
        await _pull_all(pull, makers, sources, parents_available, progress)
    except* ZeropullError as errors:
        raise _first(errors) from None
    finally:
        await _leave_nothing(pull, makers)
    progress(pull.progress)
    return PullResult(
        pull.registry_bytes, pull.data_bytes, tuple(pull.chain_ids[index] for index in missing)
    )


async def _pull_all(
    pull: _Pull,
    makers: MakerPool,
    sources: list[BlobSource],
    parents_available: Callable[[str], Path | None],
    progress: Callable[[PullProgress], None],
) -> None:
    publisher = LayerPublisher(
        pull.chain_ids,
        pull.missing,
        pull.layer_store,
        parents_available,
        pull.in_thread,
        pull.count_published,
    )

    async def one_layer(index: int, source: BlobSource) -> None:
        job = pull.job(index)
        async with makers.idle() as maker:
            async with maker.lock:
                made = await pull.in_thread(lambda: _make(pull, maker.maker, job, source))
            await publisher.add(index, WaitingLayer(job, maker, made))

    async def report_all() -> None:
        while True:
            progress(pull.progress)
            await asyncio.sleep(PROGRESS_INTERVAL_S)

    layers = pull.image.layers
    in_order = sorted(
        zip(pull.missing, sources, strict=True),
        key=lambda pair: (-_head_start(layers[pair[0]].size, pull.expected_bytes), pair[0]),
    )
    async with asyncio.TaskGroup() as group:
        reporter = group.create_task(report_all())
        for layer in [group.create_task(one_layer(*pair)) for pair in in_order]:
            await layer
        # A layer whose name a crash takes back is pulled again: once for all is enough.
        await pull.in_thread(lambda: sync_folder(pull.layer_store))
        reporter.cancel()


async def _leave_nothing(pull: _Pull, makers: MakerPool) -> None:
    """End threads and processes, and remove what is not published."""
    pull.stop.set()
    makers.kill()
    try:
        await _settle(pull.running)
    finally:
        makers.close()
        for directory in pull.temporary:
            shutil.rmtree(directory, ignore_errors=True)


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
