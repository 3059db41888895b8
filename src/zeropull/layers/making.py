"""One layer from its blob to finished files: digests, inflate, tar, data file, metadata, index.

Everything blocks, and nothing knows of other pulls: `zeropull.layers.pull` says which layer,
when, and in which thread or process.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from zeropull.erofs.lower import fill_implied, resolve_links
from zeropull.erofs.reader import MetadataImage
from zeropull.erofs.tar_layer import LayerLimits, LayerReader
from zeropull.erofs.tree import LayerTree
from zeropull.erofs.writer import write_metadata
from zeropull.errors import ImageError, IntegrityError, NotFound
from zeropull.layers.data_file import PAGE, DataFile, append_copies, disk_error
from zeropull.layers.layout import (
    BLOCKS_FILE,
    DATA_FILE,
    LAYER_FILE,
    META_FILE,
    DataRecord,
    FileRecord,
    LayerIndex,
    encode_document,
    write_all_durably,
)
from zeropull.layers.tar_stream import TarStream
from zeropull.layers.verify import verify_metadata
from zeropull.linux.files import sync_folder
from zeropull.oci.digests import digest_of


@dataclass(frozen=True, slots=True)
class LayerJob:
    """A layer to make in the empty `directory`. `parent_chain_id` is "" for the lowest layer."""

    directory: str
    chain_id: str
    parent_chain_id: str
    diff_id: str
    blob_digest: str
    limits: LayerLimits


@dataclass(frozen=True, slots=True)
class MadeLayer:
    """`is_finished`: the directory is whole. Otherwise `LayerMaker.finish` has to see the layers
    below, because directories are only implied in this one, or its hard links lead there."""

    data_bytes: int
    is_finished: bool


class LayerMaker:
    """Makes one layer after the other, and keeps in memory those that it has not finished.

    Not for several threads at once. `stop`, once set, ends what is under way with Unavailable.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._converted: dict[str, _Converted] = {}
        self._opened: dict[str, MetadataImage] = {}

    def make(self, job: LayerJob, blob: Iterator[memoryview]) -> MadeLayer:
        """Each view of the blob is done with when the next one is asked for.

        Raises:
            IntegrityError: the blob, or what it unpacks to, is not what its digest says.
            ImageError: a layer that can never be used.
            DiskFull: with the arithmetic.
        """
        converted = _convert(job, blob, self._stop)
        needs_lowers = converted.tree.implied or converted.tree.pending
        if needs_lowers:
            self._converted[job.directory] = converted
        else:
            _finish(converted, LowerLayers((), self._opened))
        return MadeLayer(converted.data_bytes, not needs_lowers)

    def finish(self, directory: str, lowers: Sequence[str]) -> MadeLayer:
        """Finish what `make` has not. `lowers` are the directories of the layers below, the
        uppermost first.

        Raises:
            IntegrityError: a layer that is needed went away, or is damaged.
            ImageError: a hard link leads nowhere.
            DiskFull: with the arithmetic.
        """
        converted = self._converted.pop(directory)
        _finish(converted, LowerLayers(lowers, self._opened))
        return MadeLayer(converted.data_bytes, is_finished=True)


class LowerLayers(Sequence[MetadataImage]):
    """Metadata of the layers below one, the uppermost first; opened and verified when first asked
    for, and kept in `opened`."""

    def __init__(self, directories: Sequence[str], opened: dict[str, MetadataImage]) -> None:
        self._directories = directories
        self._opened = opened

    def data_file(self, layer: int) -> Path:
        return Path(self._directories[layer], DATA_FILE)

    @overload
    def __getitem__(self, layer: int) -> MetadataImage: ...
    @overload
    def __getitem__(self, layer: slice) -> Sequence[MetadataImage]: ...
    def __getitem__(self, layer: int | slice) -> MetadataImage | Sequence[MetadataImage]:
        if isinstance(layer, slice):
            return [self[i] for i in range(*layer.indices(len(self)))]
        directory = self._directories[layer]
        if directory not in self._opened:
            self._opened[directory] = _open_metadata(directory)
        return self._opened[directory]

    def __len__(self) -> int:
        return len(self._directories)


def _open_metadata(directory: str) -> MetadataImage:
    # It was here when the pull began. A volume may be detached meanwhile, when another generation
    # takes its place: that is no answer of the registry's.
    try:
        verify_metadata(Path(directory))
        with Path(directory, META_FILE).open("rb") as file:
            return MetadataImage(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (NotFound, OSError) as error:
        raise IntegrityError(f"a layer below went away: {error}") from error


@dataclass(slots=True)
class _Converted:
    """A layer whose data lies in its directory, before its metadata is finished."""

    job: LayerJob
    tree: LayerTree
    digests: bytes
    data_bytes: int
    file_bytes: int


def _convert(job: LayerJob, blob: Iterator[memoryview], stop: threading.Event) -> _Converted:
    """Blob to data file and tree; both digests are checked before it returns."""
    directory = Path(job.directory)
    data: DataFile | None = None
    try:
        data = DataFile(directory / DATA_FILE, stop)
        tree, file_bytes = _read_layer(job, blob, data, stop)
        digests = data.finish()
        return _Converted(job, tree, digests, data.size, file_bytes)
    except OSError as error:
        raise disk_error(error, directory) from error
    finally:
        if data is not None:
            data.close()


def _read_layer(
    job: LayerJob, blob: Iterator[memoryview], data: DataFile, stop: threading.Event
) -> tuple[LayerTree, int]:
    stream = TarStream(blob, stop, job.limits.data_bytes)
    try:
        with stream:
            reader = LayerReader(iter(stream), data, job.limits)
            tree = reader.read()
    except (ImageError, IntegrityError) as error:
        # Damaged bytes look like an absurd layer: the digest decides whose fault it is.
        if stream.drain_blob() != job.blob_digest:
            raise _wrong_blob(job, stream) from error
        raise type(error)(f"layer {job.blob_digest}: {error}") from error
    if stream.blob_digest != job.blob_digest:
        raise _wrong_blob(job, stream)
    if stream.diff_id != job.diff_id:
        raise IntegrityError(
            f"layer {job.blob_digest} unpacks to {stream.diff_id}, "
            f"the image config says {job.diff_id}"
        )
    return tree, reader.file_bytes


def _wrong_blob(job: LayerJob, stream: TarStream) -> IntegrityError:
    return IntegrityError(
        f"layer {job.blob_digest}: the registry sent {stream.blob_bytes} bytes "
        f"whose digest is {stream.blob_digest}: its copy is damaged, push the image again"
    )


def _finish(converted: _Converted, lowers: LowerLayers) -> None:
    """Write what is missing in the directory, and bring it to the disk."""
    job, tree = converted.job, converted.tree
    directory = Path(job.directory)
    try:
        fill_implied(tree, lowers)
        _copy_up(converted, lowers)
        blocks_digest = digest_of(converted.digests)
        data_blocks = converted.data_bytes // PAGE
        meta = bytes(write_metadata(tree, data_blocks, blocks_digest[7:].encode()))
        record = LayerIndex(
            chain_id=job.chain_id,
            diff_id=job.diff_id,
            parent_chain_id=job.parent_chain_id,
            meta=FileRecord(len(meta), digest_of(meta)),
            data=DataRecord(converted.data_bytes, blocks_digest),
            blob_digest=job.blob_digest,
            unpacked_bytes=converted.file_bytes,
            files=tree.entries,
        )
        write_all_durably(
            {
                directory / META_FILE: meta,
                directory / BLOCKS_FILE: converted.digests,
                directory / LAYER_FILE: encode_document(record),
            },
            directory / DATA_FILE,
        )
        sync_folder(directory)
    except OSError as error:
        raise disk_error(error, directory) from error


def _copy_up(converted: _Converted, lowers: LowerLayers) -> None:
    """Files that hard links name in layers below come into this layer's data file."""
    copies = resolve_links(converted.tree, lowers, converted.data_bytes // PAGE)
    if copies:
        converted.data_bytes = copies[-1].destination + copies[-1].length
        converted.digests = append_copies(
            Path(converted.job.directory, DATA_FILE),
            converted.digests,
            [(lowers.data_file(c.layer), c.source, c.destination, c.length) for c in copies],
        )
