"""Compare a layer with its digests, as much of it as the caller asks for."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

from zeropull.erofs.reader import MetadataImage
from zeropull.errors import IntegrityError
from zeropull.layers.layout import (
    BLOCKS_FILE,
    DATA_FILE,
    DIGEST_BYTES,
    META_FILE,
    LayerIndex,
    digest_block,
    read_layer_index,
)
from zeropull.oci.digests import digest_of
from zeropull.stopping import check_stop

_BATCH_BLOCKS = 256  # between two looks at `stop`: 64 MiB


def verify_metadata(layer_dir: Path, *, digest: str | None = None) -> LayerIndex:
    """Check everything but the data's contents: layer.json (against `digest` where given), the
    metadata image, the list of block digests, and the length of the data file.

    Raises:
        NotFound: no such layer.
        IntegrityError: some of it is not what it should be.
    """
    index = read_layer_index(layer_dir, digest=digest)
    meta = _content(layer_dir / META_FILE, index.meta.size, index.meta.digest)
    _content(layer_dir / BLOCKS_FILE, index.data.blocks * DIGEST_BYTES, index.data.digest)
    size = _size(layer_dir / DATA_FILE)
    if size != index.data.size:
        raise IntegrityError(f"{layer_dir / DATA_FILE} has {size} bytes, not {index.data.size}")
    image = MetadataImage(meta)
    if image.data_blocks * 4096 != size:
        raise IntegrityError(
            f"{layer_dir / META_FILE} expects {image.data_blocks} data blocks, not {size // 4096}"
        )
    return index


def verify_blocks(layer_dir: Path, block_range: Sequence[int] | None = None) -> int:
    """Check 256 KiB blocks of the data file, all of them or those of `block_range`, against
    blocks.blake3, which `verify_metadata` has checked; returns how many.

    Raises:
        NotFound: no such layer.
        IntegrityError: names the first bad block.
    """
    index = read_layer_index(layer_dir)
    blocks = range(index.data.blocks) if block_range is None else block_range
    digests = _content(layer_dir / BLOCKS_FILE, index.data.blocks * DIGEST_BYTES, index.data.digest)
    path = layer_dir / DATA_FILE
    view = memoryview(mmap.mmap(-1, index.data.block_bytes))
    try:
        with _open_uncached(path) as file:
            for block in blocks:
                start = block * index.data.block_bytes
                length = min(index.data.block_bytes, index.data.size - start)
                count = os.preadv(file.fileno(), [view[:length]], start) if length > 0 else -1
                expected = digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]
                if count != length or digest_block(view[:length]) != expected:
                    raise IntegrityError(f"{path}: block {block} is not what its digest says")
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror}") from error
    return len(blocks)


def verify_layer(layer_dir: Path, chain_id: str, stop: threading.Event | None = None) -> LayerIndex:
    """Check all of the layer `chain_id`, every block of its data too.

    Raises:
        NotFound: no such layer.
        IntegrityError: some of it is not what it should be, or it is another layer.
        Unavailable: `stop` was set.
    """
    index = verify_metadata(layer_dir)
    if index.chain_id != chain_id:
        raise IntegrityError(f"{layer_dir} holds the layer {index.chain_id}, expected {chain_id}")
    blocks = range(index.data.blocks)
    for start in range(0, len(blocks), _BATCH_BLOCKS):
        check_stop(stop)
        verify_blocks(layer_dir, blocks[start : start + _BATCH_BLOCKS])
    return index


def _open_uncached(path: Path) -> FileIO:
    """For reads of whole pages into a buffer that begins with one. What is verified is what lies on
    the disk, and gigabytes that are read once push nothing out of the page cache."""
    try:
        return FileIO(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return FileIO(path)


def _content(path: Path, size: int | None, digest: str) -> bytes:
    if size is not None and _size(path) != size:
        raise IntegrityError(f"{path} has {_size(path)} bytes, not {size}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror}") from error
    if digest_of(content) != digest:
        raise IntegrityError(f"{path} has the digest {digest_of(content)}, not {digest}")
    return content


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror}") from error
