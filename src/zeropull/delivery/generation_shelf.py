"""The source's shelf: the published generations of every endpoint on the control plane's disk."""

from __future__ import annotations

import os
import re
from pathlib import Path

from zeropull.delivery.grants import Grant
from zeropull.delivery.serving import Blocks
from zeropull.errors import IntegrityError, InvalidInput, NotFound
from zeropull.imagecache.layout import generation_layer
from zeropull.layers.layout import DATA_FILE, LayerIndex, read_layer_index

_NAME = re.compile(
    r"generation\.json"
    r"|blobs/[0-9a-f]{64}"
    r"|profiles/[0-9a-f]{64}\.json"
    r"|layers/[0-9a-f]{64}/(layer\.json|meta\.erofs|blocks\.blake3)"
)
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")


class GenerationShelf:
    """`root` is the folder of all image caches (`zeropull.imagecache.generations`)."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def file(self, grant: Grant, generation: int, name: str) -> Path | None:
        """Only names of files that a generation has; there is no way out of its folder."""
        if not _NAME.fullmatch(name):
            return None
        return self._generation(grant, generation) / name

    def layer(self, grant: Grant, generation: int, chain_id: str) -> Blocks:
        """Raises:
        NotFound: the grant's endpoint has no such layer in this generation.
        """
        try:
            folder = generation_layer(self._generation(grant, generation), chain_id)
            return _WholeLayer(folder, read_layer_index(folder))
        except (IntegrityError, InvalidInput) as error:
            raise NotFound(error.reason) from error

    def _generation(self, grant: Grant, generation: int) -> Path:
        if not _UID.fullmatch(grant.endpoint_uid):
            raise NotFound(f"there is no endpoint {grant.endpoint_uid}")
        return self._root / grant.endpoint_uid / "generations" / str(generation)


class _WholeLayer:
    def __init__(self, folder: Path, index: LayerIndex) -> None:
        self._path = folder / DATA_FILE
        self._index = index

    def available(self, first: int, count: int) -> int:
        return max(0, min(count, self._index.data.blocks - first))

    def size(self, first: int, count: int) -> int:
        data = self._index.data
        begin, end = first * data.block_bytes, (first + count) * data.block_bytes
        return max(0, min(end, data.size) - begin)

    def read(self, block: int) -> bytes:
        size, length = self._index.data.block_bytes, self.size(block, 1)
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, length, block * size)
        finally:
            os.close(descriptor)
