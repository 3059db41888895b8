"""Reads metadata images that `zeropull.erofs.writer` makes, one inode or directory at a time."""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zeropull.erofs.format import (
    BLOCK_BYTES,
    CHUNK_INDEX,
    CHUNK_INDEX_BYTES,
    DIRENT,
    DIRENT_BYTES,
    INODE,
    INODE_BYTES,
    LAYOUT_CHUNKS,
    LAYOUT_INLINE,
    MAGIC,
    NID_BYTES,
    SLOT,
    SLOT_OFFSET,
    SUPER,
    SUPER_OFFSET,
    super_checksum,
)
from zeropull.erofs.xattrs import unpack_xattrs
from zeropull.errors import IntegrityError


@dataclass(frozen=True, slots=True)
class Inode:
    """One inode as stored; `offset` and `union` are for the reader's own use."""

    nid: int
    mode: int
    size: int
    uid: int
    gid: int
    mtime_s: int
    mtime_ns: int
    nlink: int
    layout: int
    union: int
    xattr_bytes: int

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_whiteout(self) -> bool:
        return stat.S_ISCHR(self.mode) and self.union == 0

    @property
    def rdev(self) -> int:
        return self.union if stat.S_ISCHR(self.mode) or stat.S_ISBLK(self.mode) else 0


class MetadataImage:
    """A metadata image in a buffer (bytes or a mapped file), which must outlive it.

    Raises:
        IntegrityError: from every method, when the bytes are no image of ours.
    """

    def __init__(self, buffer: Any) -> None:
        self._view = memoryview(buffer)
        self.blocks, self.data_blocks = image_sizes(bytes(self._view[:BLOCK_BYTES]))
        fields = SUPER.unpack_from(self._view, SUPER_OFFSET)
        self.inodes: int = fields[6]
        if self.blocks * BLOCK_BYTES != len(self._view):
            raise IntegrityError("EROFS metadata: another length than the superblock says")
        self.root = self.inode(fields[5])

    def inode(self, nid: int) -> Inode:
        try:
            fields = INODE.unpack_from(self._view, nid * NID_BYTES)
        except (struct.error, OverflowError):
            raise IntegrityError(f"EROFS metadata: inode {nid} is outside") from None
        icount = fields[1]
        return Inode(
            nid,
            fields[2],
            fields[4],
            fields[7],
            fields[8],
            fields[9],
            fields[10],
            fields[11],
            fields[0] >> 1 & 7,
            fields[5],
            12 + 4 * (icount - 1) if icount else 0,
        )

    def entries(self, directory: Inode) -> Iterator[tuple[bytes, int]]:
        """Names (without the dots) and nids, sorted."""
        content = self._content(directory)
        for start in range(0, len(content), BLOCK_BYTES):
            for name, nid in _dirents(content[start : start + BLOCK_BYTES]):
                if name not in (b".", b".."):
                    yield name, nid

    def lookup(self, directory: Inode, name: bytes) -> Inode | None:
        low, high = 0, -(-directory.size // BLOCK_BYTES)
        while high - low > 1:  # the last block whose first name is not behind `name`
            middle = (low + high) // 2
            if _first_name(self._block(directory, middle)) <= name:
                low = middle
            else:
                high = middle
        for found, nid in _dirents(self._block(directory, low)):
            if found == name:
                return self.inode(nid)
        return None

    def target(self, link: Inode) -> bytes:
        return self._content(link)

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        start = inode.nid * NID_BYTES + INODE_BYTES
        return unpack_xattrs(bytes(self._view[start : start + inode.xattr_bytes]))

    def chunks(self, file: Inode) -> tuple[int, list[int]]:
        """log2 of the chunk size and the first block of each chunk (0xFFFFFFFF for a hole)."""
        if file.layout != LAYOUT_CHUNKS:
            return 12, []
        bits = 12 + (file.union & 0x1F)
        start = file.nid * NID_BYTES + INODE_BYTES + file.xattr_bytes
        start += -start % CHUNK_INDEX_BYTES
        count = (file.size + (1 << bits) - 1) >> bits
        end = start + count * CHUNK_INDEX_BYTES
        if end > len(self._view):
            raise IntegrityError("EROFS metadata: chunk indexes are outside")
        return bits, [entry[2] for entry in CHUNK_INDEX.iter_unpack(self._view[start:end])]

    def _content(self, inode: Inode) -> bytes:
        blocks = -(-inode.size // BLOCK_BYTES)
        return b"".join(self._block(inode, number) for number in range(blocks))

    def _block(self, inode: Inode, number: int) -> bytes:
        """One block of what a directory or symbolic link contains; the last one may be short."""
        start = (inode.union + number) * BLOCK_BYTES
        count = min(BLOCK_BYTES, inode.size - number * BLOCK_BYTES)
        if count < BLOCK_BYTES and inode.layout == LAYOUT_INLINE:
            start = inode.nid * NID_BYTES + INODE_BYTES + inode.xattr_bytes
        block = bytes(self._view[start : start + count])
        if len(block) != count:
            raise IntegrityError("EROFS metadata: content is outside")
        return block


def image_sizes(first_block: bytes) -> tuple[int, int]:
    """Lengths of the metadata image and of its data device, in 4 KiB blocks.

    Raises:
        IntegrityError: the block is no superblock, or its checksum is wrong.
    """
    if len(first_block) < BLOCK_BYTES:
        raise IntegrityError("EROFS metadata: shorter than one block")
    fields = SUPER.unpack_from(first_block, SUPER_OFFSET)
    if fields[0] != MAGIC or fields[1] != super_checksum(first_block):
        raise IntegrityError("EROFS metadata: wrong magic number or superblock checksum")
    return fields[9], SLOT.unpack_from(first_block, SLOT_OFFSET)[1] if fields[16] else 0


def _dirents(block: bytes) -> Iterator[tuple[bytes, int]]:
    try:
        count = DIRENT.unpack_from(block)[1] // DIRENT_BYTES
        heads = list(DIRENT.iter_unpack(block[: count * DIRENT_BYTES]))
    except struct.error:
        raise IntegrityError("EROFS metadata: damaged directory") from None
    if len(heads) != count:
        raise IntegrityError("EROFS metadata: damaged directory")
    for index, (nid, offset, _, _) in enumerate(heads):
        if index + 1 < count:
            yield block[offset : heads[index + 1][1]], nid
        else:
            yield block[offset:].partition(b"\0")[0], nid


def _first_name(block: bytes) -> bytes:
    for name, _ in _dirents(block):
        return name
    return b""
