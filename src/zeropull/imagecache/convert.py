"""Pull layers in one pass: blob, digest, inflate, diff ID, tar, data file, metadata, publish.

Layers are converted side by side; metadata is finished bottom-up, because implied directories and
hard links look into the layers below.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

from zeropull.erofs.lower import fill_implied, resolve_links
from zeropull.erofs.reader import MetadataImage
from zeropull.erofs.tarlayer import LayerLimits, LayerReader
from zeropull.erofs.tree import LayerTree
from zeropull.erofs.writer import write_metadata
from zeropull.errors import DiskFull, ImageError, IntegrityError, NotFound, ZeropullError
from zeropull.imagecache.datafile import PAGE, DataFile, append_copies, disk_error
from zeropull.imagecache.inflate import TarStream
from zeropull.imagecache.layout import (
    BLOCKS_FILE,
    DATA_FILE,
    LAYER_FILE,
    META_FILE,
    TEMPORARY_PREFIX,
    DataRecord,
    FileRecord,
    LayerIndex,
    encode_index,
    fsync_directory,
    layer_directory,
    write_durably,
)
from zeropull.imagecache.threads import short_switch_interval
from zeropull.imagecache.verify import verify_metadata
from zeropull.oci.digests import digest_of, hex_of
from zeropull.oci.images import Descriptor, ResolvedImage
from zeropull.registry.blobs import BlobSource, open_blob

# Each layer in work holds some 60 MB: parts of the blob, inflated buffers, data buffers.
LAYERS_AT_ONCE_MAX = 4
LARGE_SHARE = 8  # an eighth of all bytes, and more, is a large layer
PROGRESS_INTERVAL_S = 0.2

OpenBlob = Callable[
    [BlobSource, threading.Event, Callable[[int], None]],
    AbstractContextManager[Iterator[memoryview]],
]


@dataclass(frozen=True, slots=True)
class PullProgress:
    """Whole pull: layers published, compressed bytes received and expected, data bytes written."""

    layers_done: int
    layers_total: int
    registry_bytes: int
    registry_bytes_total: int
    data_bytes: int


@dataclass(frozen=True, slots=True)
class PullResult:
    """`seconds`: "convert" and "metadata" summed over layers, "total" wall time."""

    registry_bytes: int
    data_bytes: int
    seconds: dict[str, float]
    chain_ids: tuple[str, ...]


@dataclass(slots=True)
class _Converted:
    """A layer whose data lies in `directory`, before its metadata is finished."""

    directory: Path
    tree: LayerTree
    digests: bytes
    data_bytes: int
    file_bytes: int


@dataclass(slots=True)
class _Pull:
    """What the layers of one pull share. Threads add to the counters under `lock`."""

    image: ResolvedImage
    layer_store: Path
    limits: LayerLimits
    open_blob: OpenBlob
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    registry_bytes: int = 0
    data_bytes: int = 0
    layers_done: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"convert": 0.0, "metadata": 0.0})
    temporary: list[Path] = field(default_factory=list)

    def count(self, *, registry: int = 0, data: int = 0) -> None:
        with self.lock:
            self.registry_bytes += registry
            self.data_bytes += data

    def spend(self, part: str, began_s: float) -> None:
        with self.lock:
            self.seconds[part] += time.monotonic() - began_s


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
) -> PullResult:
    """Bring the layers with the indexes `missing` (bottom-up, `sources` in the same order) to
    `layer_store`, each published by rename as soon as it and the missing ones below it are ready.

    `parents_available` gives the directory of a layer that is not missing. `progress` is called on
    the event loop. Cancelled or failed, it leaves what was published, and nothing else.

    Raises:
        IntegrityError: a blob or a layer is not what its digest says, or a layer below went away.
        ImageError: a layer that can never be used.
        DiskFull: with the arithmetic.
        Unavailable, NotFound, AccessDenied: from the registry.
    """
    began_s = time.monotonic()
    layer_store.mkdir(parents=True, exist_ok=True)
    _check_room(image, missing, layer_store)
    pull = _Pull(image, layer_store, limits or LayerLimits(), open_blob)
    lowers = _Lowers(image.chain_ids, set(missing), layer_store, parents_available)
    published = {index: asyncio.Event() for index in missing}
    slots = asyncio.Semaphore(max(1, min(LAYERS_AT_ONCE_MAX, os.cpu_count() or 1)))
    running: set[asyncio.Future[None]] = set()

    async def in_thread(work: Callable[[], None]) -> None:
        future = asyncio.get_running_loop().run_in_executor(None, work)
        running.add(future)
        await asyncio.shield(future)
        running.discard(future)

    async def one_layer(index: int, source: BlobSource) -> None:
        converted: list[_Converted] = []
        async with slots:
            await in_thread(lambda: converted.append(_convert(pull, index, source)))
        below = [lower for lower in missing if lower < index]
        if below:
            await published[max(below)].wait()
        await in_thread(lambda: _finish(pull, index, converted[0], lowers))
        published[index].set()
        pull.layers_done += 1

    total = sum(image.layers[index].size for index in missing)

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
    shortened = contextlib.ExitStack()
    try:
        shortened.enter_context(short_switch_interval())
        async with asyncio.TaskGroup() as group:
            reporter = group.create_task(report_all())
            layers = [group.create_task(one_layer(*pair)) for pair in in_order]
            for layer in layers:
                await layer
            reporter.cancel()
    except* ZeropullError as errors:
        raise _first(errors) from None
    finally:
        pull.stop.set()
        await _settle(running)
        shortened.close()
        lowers.close()
        for directory in pull.temporary:
            shutil.rmtree(directory, ignore_errors=True)
    report()
    pull.seconds["total"] = time.monotonic() - began_s
    chain_ids = image.chain_ids
    return PullResult(
        pull.registry_bytes,
        pull.data_bytes,
        pull.seconds,
        tuple(chain_ids[index] for index in missing),
    )


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


# ------------------------------------------------------------------ one layer, in a thread


def _convert(pull: _Pull, index: int, source: BlobSource) -> _Converted:
    """Blob to data file and tree; both digests are checked before it returns."""
    began_s = time.monotonic()
    layer, diff_id = pull.image.layers[index], pull.image.diff_ids[index]
    chain_id = pull.image.chain_ids[index]
    name = f"{TEMPORARY_PREFIX}{hex_of(chain_id)[:12]}-{secrets.token_hex(4)}"
    directory = pull.layer_store / name
    pull.temporary.append(directory)
    data: DataFile | None = None
    try:
        directory.mkdir()
        data = DataFile(directory / DATA_FILE, pull.stop)
        with pull.open_blob(source, pull.stop, lambda n: pull.count(registry=n)) as buffers:
            tree, file_bytes = _read_layer(buffers, layer, diff_id, data, pull)
        digests = data.finish()
        data_bytes = data.size
    except OSError as error:
        raise disk_error(error, directory) from error
    finally:
        if data is not None:
            data.close()
    pull.count(data=data_bytes)
    pull.spend("convert", began_s)
    return _Converted(directory, tree, digests, data_bytes, file_bytes)


def _read_layer(
    buffers: Iterator[memoryview], layer: Descriptor, diff_id: str, data: DataFile, pull: _Pull
) -> tuple[LayerTree, int]:
    stream = TarStream(buffers, layer.size, pull.stop)
    try:
        with stream:
            reader = LayerReader(iter(stream), data, pull.limits)
            tree = reader.read()
    except (ImageError, IntegrityError) as error:
        # Damaged bytes look like an absurd layer: the digest decides whose fault it is.
        if stream.drain_blob() != layer.digest:
            raise _wrong_blob(layer, stream) from error
        raise type(error)(f"layer {layer.digest}: {error}") from error
    if stream.blob_digest != layer.digest:
        raise _wrong_blob(layer, stream)
    if stream.diff_id != diff_id:
        raise IntegrityError(
            f"layer {layer.digest} unpacks to {stream.diff_id}, the image config says {diff_id}"
        )
    return tree, reader.file_bytes


def _wrong_blob(layer: Descriptor, stream: TarStream) -> IntegrityError:
    return IntegrityError(
        f"layer {layer.digest}: the registry sent {stream.blob_bytes} bytes "
        f"whose digest is {stream.blob_digest}: its copy is damaged, push the image again"
    )


def _finish(pull: _Pull, index: int, converted: _Converted, lowers: _Lowers) -> None:
    """Finish the metadata with the layers below at hand, and publish the directory."""
    began_s = time.monotonic()
    tree, directory = converted.tree, converted.directory
    below = lowers.below(index)
    data_bytes = converted.data_bytes
    digests = converted.digests
    try:
        fill_implied(tree, below)
        copies = resolve_links(tree, below, data_bytes // PAGE)
        if copies:
            data_bytes = copies[-1].destination + copies[-1].length
            digests = append_copies(
                directory / DATA_FILE,
                digests,
                [
                    (below.directory(c.layer) / DATA_FILE, c.source, c.destination, c.length)
                    for c in copies
                ],
            )
        blocks_digest = digest_of(digests)
        meta = bytes(write_metadata(tree, data_bytes // PAGE, blocks_digest[7:].encode()))
        chain_ids = pull.image.chain_ids
        record = LayerIndex(
            chain_id=chain_ids[index],
            diff_id=pull.image.diff_ids[index],
            parent_chain_id=chain_ids[index - 1] if index else "",
            meta=FileRecord(len(meta), digest_of(meta)),
            data=DataRecord(data_bytes, blocks_digest),
            blob_digest=pull.image.layers[index].digest,
            unpacked_bytes=converted.file_bytes,
            files=tree.entries,
        )
        write_durably(directory / META_FILE, meta)
        write_durably(directory / BLOCKS_FILE, digests)
        write_durably(directory / LAYER_FILE, encode_index(record))
        fsync_directory(directory)
        publish_layer(directory, layer_directory(pull.layer_store, record.chain_id))
    except OSError as error:
        raise disk_error(error, directory) from error
    pull.spend("metadata", began_s)


def publish_layer(directory: Path, target: Path) -> None:
    """Rename into place; a layer that is there already (equal by its name) stays."""
    try:
        directory.rename(target)
    except OSError:
        if not (target / LAYER_FILE).is_file():
            raise
        shutil.rmtree(directory)
    fsync_directory(target.parent)


class _Lowers:
    """Metadata of the image's layers, opened and verified when first asked for."""

    def __init__(
        self,
        chain_ids: list[str],
        missing: set[int],
        layer_store: Path,
        parents_available: Callable[[str], Path | None],
    ) -> None:
        self.chain_ids = chain_ids
        self._missing = missing
        self._layer_store = layer_store
        self._parents_available = parents_available
        self._open: dict[int, MetadataImage] = {}

    def below(self, index: int) -> _Below:
        return _Below(self, index)

    def directory(self, index: int) -> Path:
        chain_id = self.chain_ids[index]
        if index in self._missing:
            return layer_directory(self._layer_store, chain_id)
        found = self._parents_available(chain_id)
        if found is None:
            raise NotFound(f"layer {chain_id} is neither missing nor available")
        return found

    def image(self, index: int) -> MetadataImage:
        if index not in self._open:
            try:
                directory = self.directory(index)
                verify_metadata(directory)
                with (directory / META_FILE).open("rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (NotFound, OSError) as error:
                # It was here when the pull began. A volume may be detached meanwhile, when another
                # generation takes its place: that is no answer of the registry's.
                raise IntegrityError(f"layer {self.chain_ids[index]} went away: {error}") from error
            self._open[index] = MetadataImage(mapped)
        return self._open[index]

    def close(self) -> None:
        self._open.clear()


class _Below(Sequence[MetadataImage]):
    """The layers below one, top-first."""

    def __init__(self, lowers: _Lowers, index: int) -> None:
        self._lowers = lowers
        self._index = index

    def directory(self, layer: int) -> Path:
        return self._lowers.directory(self._index - 1 - layer)

    @overload
    def __getitem__(self, layer: int) -> MetadataImage: ...
    @overload
    def __getitem__(self, layer: slice) -> Sequence[MetadataImage]: ...
    def __getitem__(self, layer: int | slice) -> MetadataImage | Sequence[MetadataImage]:
        if isinstance(layer, slice):
            return [self[i] for i in range(*layer.indices(len(self)))]
        if not 0 <= layer < self._index:
            raise IndexError(layer)
        return self._lowers.image(self._index - 1 - layer)

    def __len__(self) -> int:
        return self._index


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
