"""A layer whose data is on its way: which blocks are here, who brings which, and when it is whole.

Beside the files of an ordinary layer directory (`zeropull.layers.layout`) lies `arriving.map`: the
boot in which it was written, then a byte for each block, 1 once the block is in data.erofs. It is
shared memory, so a killed process loses nothing: what it had written is in the kernel's page cache,
and the byte is set after the write. After a crash of the machine neither is to be trusted: blocks
that the map names are compared with their digests again. A layer without the map is whole.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from zeropull.errors import IntegrityError
from zeropull.layers.layout import (
    BLOCKS_FILE,
    DATA_FILE,
    DIGEST_BYTES,
    LayerIndex,
    digest_block,
    read_layer_index,
)
from zeropull.linux.files import sync_folder

MAP_FILE = "arriving.map"
OWN_FILE = "arriving.data"  # where `data.erofs` is a link into a FUSE mount
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_HEADER_BYTES = 64
_HERE = 1


def is_arriving(layer: Path) -> bool:
    """Whether part of the layer's data may still be missing."""
    return (layer / MAP_FILE).exists()


def expect_layer(layer: Path, index: LayerIndex) -> None:
    """Make the data file and the map of a layer whose other files are there. Idempotent.

    Raises:
        OSError: there is no room.
    """
    data, blocks = layer / DATA_FILE, layer / MAP_FILE
    if data.exists() or not index.data.size:
        data.touch()
        return
    with blocks.open("wb") as file:
        file.write(_boot_id().ljust(_HEADER_BYTES, b"\0"))
        file.truncate(_HEADER_BYTES + index.data.blocks)
    partial = data.with_name(f".{data.name}.new")
    with partial.open("wb") as file:
        file.truncate(index.data.size)
    partial.replace(data)  # last: a data file without a map would count as whole


class ArrivingLayer:
    """One such layer, open. Methods may be called from any thread.

    A block is missing, or somebody has claimed it and brings it, or it is here. `claim`, then `put`
    or `give_up`; whoever needs a block waits for it with `wait`.
    """

    def __init__(self, layer: Path) -> None:
        """Raises:
        NotFound, IntegrityError, OSError: the layer's other files are not what they should be.
        """
        self.path = layer
        self.index = read_layer_index(layer)
        self.inode = 0
        self._digests = (layer / BLOCKS_FILE).read_bytes()
        if len(self._digests) != self.index.data.blocks * DIGEST_BYTES:
            raise IntegrityError(f"{layer / BLOCKS_FILE} has {len(self._digests)} bytes")
        # Opened before the file is marked: the kernel raises no events for this descriptor.
        own = layer / OWN_FILE
        self._data = os.open(own if own.exists() else layer / DATA_FILE, os.O_RDWR | os.O_CLOEXEC)
        self.inode = os.fstat(self._data).st_ino
        self._changed = threading.Condition()
        self._claimed: set[int] = set()
        self._map = self._open_map()
        self._missing = 0 if self._map is None else self._map[_HEADER_BYTES:].count(0)

    def close(self) -> None:
        with self._changed:
            if self._map is not None:
                self._map.close()
                self._map = None
            os.close(self._data)

    @property
    def blocks(self) -> int:
        return self.index.data.blocks

    @property
    def missing(self) -> int:
        """How many blocks are not here yet."""
        return self._missing

    def block_bytes(self, block: int) -> int:
        """The size of a block; the last one may be short."""
        size = self.index.data.block_bytes
        return min(size, self.index.data.size - block * size)

    def has(self, first: int, count: int = 1) -> bool:
        """Whether all of these blocks are here. Never waits."""
        blocks = self._map
        if blocks is None:
            return True
        return blocks.find(b"\0", _HEADER_BYTES + first, _HEADER_BYTES + first + count) < 0

    def claim(self, blocks: Iterable[int]) -> list[int]:
        """Those of the blocks that are missing and nobody brings: they are the caller's now."""
        with self._changed:
            mine = [each for each in blocks if each not in self._claimed and not self.has(each)]
            self._claimed.update(mine)
        return mine

    def give_up(self, blocks: Iterable[int]) -> None:
        """The caller does not bring these: another one may."""
        with self._changed:
            self._claimed.difference_update(blocks)
            self._changed.notify_all()

    def put(self, block: int, content: memoryview) -> bool:
        """Write a block if it is what the index says; False when it is not.

        Raises:
            OSError: the disk is full, say; the block is still missing.
        """
        digest = self._digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]
        if len(content) != self.block_bytes(block) or digest_block(content) != digest:
            return False
        if self._map is not None and not self.has(block):
            offset = block * self.index.data.block_bytes
            while content:
                written = os.pwrite(self._data, content, offset)
                offset, content = offset + written, content[written:]
            with self._changed:
                if not self.has(block):
                    self._map[_HEADER_BYTES + block] = _HERE
                    self._missing -= 1
                self._claimed.discard(block)
                self._changed.notify_all()
        return True

    def wait(self, first: int, count: int, timeout_s: float) -> bool:
        """Until the blocks are here, or one of them is neither here nor on its way. True: here."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_coming(first, count), timeout_s)
            return self.has(first, count)

    def read(self, block: int) -> bytes:
        """A block that is here, for another node. It is the caller's to verify."""
        return os.pread(self._data, self.block_bytes(block), block * self.index.data.block_bytes)

    def read_bytes(self, offset: int, count: int) -> bytes:
        """Data that is here."""
        return os.pread(self._data, count, offset)

    def finish(self) -> None:
        """Every block is here: bring the data to the disk and make it an ordinary layer.

        Raises:
            OSError: it cannot be synced; the layer stays as it is.
        """
        os.fdatasync(self._data)
        self._map = None
        (self.path / MAP_FILE).unlink(missing_ok=True)
        sync_folder(self.path)

    def _is_coming(self, first: int, count: int) -> bool:
        missing = [block for block in range(first, first + count) if not self.has(block)]
        return bool(missing) and all(block in self._claimed for block in missing)

    def _open_map(self) -> mmap.mmap | None:
        try:
            descriptor = os.open(self.path / MAP_FILE, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            blocks = mmap.mmap(descriptor, _HEADER_BYTES + self.blocks)
        finally:
            os.close(descriptor)
        if blocks[:_HEADER_BYTES].rstrip(b"\0") != _boot_id():
            self._verify_again(blocks)
        return blocks

    def _verify_again(self, blocks: mmap.mmap) -> None:
        """The machine was started again: its crash may have lost data that the map names."""
        for block in range(self.blocks):
            if blocks[_HEADER_BYTES + block] == _HERE:
                digest = self._digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]
                if digest_block(memoryview(self.read(block))) != digest:
                    blocks[_HEADER_BYTES + block] = 0
        blocks[:_HEADER_BYTES] = _boot_id().ljust(_HEADER_BYTES, b"\0")


def _boot_id() -> bytes:
    return _BOOT_ID.read_text().strip().encode()
