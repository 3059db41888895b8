"""Writes a layer tree as an EROFS metadata image, whose file contents lie on device 1.

Equal trees give equal bytes: inodes stand in breadth-first order of sorted names, times and
identifiers of the image itself are zero. Format: Linux Documentation/filesystems/erofs.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass

from zeropull.erofs.format import (
    BLOCK_BITS,
    BLOCK_BYTES,
    CHUNK_BITS_MAX,
    CHUNK_INDEX,
    CHUNK_INDEX_BYTES,
    CHUNK_INDEXES,
    COMPAT_CHECKSUM,
    DIRENT,
    DIRENT_BYTES,
    DIRENT_TYPES,
    INCOMPAT_CHUNKED_FILE,
    INCOMPAT_DEVICE_TABLE,
    INODE,
    INODE_BYTES,
    INODES_OFFSET,
    LAYOUT_CHUNKS,
    LAYOUT_INLINE,
    LAYOUT_PLAIN,
    MAGIC,
    NID_BYTES,
    NO_BLOCK,
    SLOT,
    SLOT_OFFSET,
    SUPER,
    SUPER_OFFSET,
    super_checksum,
)
from zeropull.erofs.tree import LayerTree, Node
from zeropull.erofs.xattrs import pack_xattrs
from zeropull.errors import ImageError


@dataclass(slots=True)
class _Placed:
    """Where one inode and what follows it will stand. `names`: of a directory, with dots."""

    node: Node
    xattrs: bytes
    layout: int
    size: int  # of the inline or plain content; of the file for chunk-based inodes
    first_block: int
    chunk_bits: int = 0
    names: list[bytes] | None = None
    parent: Node | None = None


def write_metadata(tree: LayerTree, data_blocks: int, tag: bytes = b"") -> bytearray:
    """The metadata image for `tree`, whose links into lower layers are resolved.

    `data_blocks` is the length of the data file in 4 KiB blocks; with 0 the image needs no device.
    `tag`: up to 64 bytes for the device slot.

    Raises:
        ImageError: extended attributes or offsets beyond what the format holds.
    """
    placed, inode_bytes = _place(tree.root)
    blocks = -(-inode_bytes // BLOCK_BYTES)
    for item in placed:
        if item.layout in (LAYOUT_PLAIN, LAYOUT_INLINE):
            whole = item.size // BLOCK_BYTES
            if item.layout == LAYOUT_PLAIN:
                whole = -(-item.size // BLOCK_BYTES)
            item.first_block = blocks if whole else NO_BLOCK
            blocks += whole
    image = bytearray(blocks * BLOCK_BYTES)
    for number, item in enumerate(placed):
        _write_inode(image, item, number + 1)
    incompat = INCOMPAT_CHUNKED_FILE
    if data_blocks:
        incompat |= INCOMPAT_DEVICE_TABLE
        SLOT.pack_into(image, SLOT_OFFSET, tag[:64], data_blocks, 0)
    SUPER.pack_into(
        image,
        SUPER_OFFSET,
        MAGIC,
        0,
        COMPAT_CHECKSUM,
        BLOCK_BITS,
        0,
        tree.root.nid,
        len(placed),
        0,
        0,
        blocks,
        0,
        0,
        bytes(16),
        b"",
        incompat,
        0,
        1 if data_blocks else 0,
        SLOT_OFFSET // SLOT.size if data_blocks else 0,
    )
    checksum = super_checksum(image[:BLOCK_BYTES])
    image[SUPER_OFFSET + 4 : SUPER_OFFSET + 8] = checksum.to_bytes(4, "little")
    return image


def _place(root: Node) -> tuple[list[_Placed], int]:
    """Give every inode its nid, breadth first, and count links."""
    placed: list[_Placed] = []
    directories: list[tuple[Node, Node]] = [(root, root)]
    _forget_nids(root)
    offset = _place_node(placed, root, root, INODES_OFFSET)
    root.nlink = 2
    for directory, _ in directories:  # grows while it is walked
        assert directory.children is not None
        for name in sorted(directory.children):
            child = directory.children[name]
            if child.children is not None:
                child.nlink = 2
                directory.nlink += 1
                directories.append((child, directory))
            else:
                child.nlink += 1
                if child.nid:
                    continue
            offset = _place_node(placed, child, directory, offset)
    return placed, offset


def _forget_nids(root: Node) -> None:
    waiting = [root]
    while waiting:
        children = waiting.pop().children
        assert children is not None
        for child in children.values():
            child.nid = child.nlink = 0
            if child.children is not None:
                waiting.append(child)


def _place_node(placed: list[_Placed], node: Node, parent: Node, offset: int) -> int:
    """Append the node at the first offset that fits; returns where the next one may start."""
    xattrs = pack_xattrs(node.xattrs)
    item = _Placed(node, xattrs, LAYOUT_PLAIN, 0, NO_BLOCK)
    head = INODE_BYTES + len(xattrs)
    tail = 0
    if node.children is not None:
        item.names = sorted([b".", b"..", *node.children])
        item.size = _directory_size(item.names)
        item.parent = parent
        item.layout = LAYOUT_INLINE
    elif stat.S_ISLNK(node.mode):
        item.size = len(node.target)
        item.layout = LAYOUT_INLINE
    elif stat.S_ISREG(node.mode) and node.size:
        item.layout = LAYOUT_CHUNKS
        item.size = node.size
        item.chunk_bits = node.chunk_bits
        if node.chunks is None:
            item.chunk_bits = min(CHUNK_BITS_MAX, max(BLOCK_BITS, (node.size - 1).bit_length()))
        head += -head % CHUNK_INDEX_BYTES
        chunks = (node.size + (1 << item.chunk_bits) - 1) >> item.chunk_bits
        tail = chunks * CHUNK_INDEX_BYTES
    if item.layout == LAYOUT_INLINE:
        tail = item.size % BLOCK_BYTES
        start = offset % BLOCK_BYTES + head
        if not tail or head % BLOCK_BYTES + tail > BLOCK_BYTES:
            item.layout, tail = LAYOUT_PLAIN, 0
        elif start % BLOCK_BYTES + tail > BLOCK_BYTES:
            offset += -offset % BLOCK_BYTES  # the tail may not straddle a block
    node.nid = offset // NID_BYTES
    placed.append(item)
    end = offset + head + tail
    return end + -end % NID_BYTES


def _directory_size(names: list[bytes]) -> int:
    blocks = used = 0
    for name in names:
        need = DIRENT_BYTES + len(name)
        if used + need > BLOCK_BYTES:
            blocks += 1
            used = 0
        used += need
    return blocks * BLOCK_BYTES + used


def _write_inode(image: bytearray, item: _Placed, ino: int) -> None:
    node = item.node
    offset = node.nid * NID_BYTES
    union = 0
    size = item.size
    if item.layout == LAYOUT_CHUNKS:
        union = CHUNK_INDEXES | (item.chunk_bits - BLOCK_BITS)
    elif stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode):
        union = node.rdev
    elif size:
        union = item.first_block
    icount = 1 + (len(item.xattrs) - 12) // 4 if item.xattrs else 0
    INODE.pack_into(
        image,
        offset,
        1 | item.layout << 1,
        icount,
        node.mode,
        0,
        size,
        union,
        ino,
        node.uid,
        node.gid,
        node.mtime_s,
        node.mtime_ns,
        node.nlink,
    )
    offset += INODE_BYTES
    if item.xattrs:
        image[offset : offset + len(item.xattrs)] = item.xattrs
        offset += len(item.xattrs)
    if item.layout == LAYOUT_CHUNKS:
        _write_chunks(image, item, offset + -offset % CHUNK_INDEX_BYTES)
    elif item.names is not None:
        _write_content(image, item, offset, _directory(item))
    elif node.target:
        _write_content(image, item, offset, node.target)


def _write_chunks(image: bytearray, item: _Placed, offset: int) -> None:
    node = item.node
    blocks: Sequence[int]
    if node.chunks is not None:
        blocks = node.chunks
    else:
        step = 1 << (item.chunk_bits - BLOCK_BITS)
        count = (node.size + (1 << item.chunk_bits) - 1) >> item.chunk_bits
        blocks = range(node.block, node.block + step * count, step)
        if blocks[-1] >= NO_BLOCK:
            raise ImageError("the layer has more than 16 TiB of data")
    for block in blocks:
        CHUNK_INDEX.pack_into(image, offset, 0, 0 if block == NO_BLOCK else 1, block)
        offset += CHUNK_INDEX_BYTES


def _write_content(image: bytearray, item: _Placed, offset: int, content: bytes) -> None:
    whole = len(content)
    if item.layout == LAYOUT_INLINE:
        whole -= len(content) % BLOCK_BYTES
        tail = content[whole:]
        image[offset : offset + len(tail)] = tail
    if whole:
        start = item.first_block * BLOCK_BYTES
        image[start : start + whole] = content[:whole]


def _directory(item: _Placed) -> bytes:
    """Dirents in self-contained blocks, sorted by unsigned bytes over the whole directory."""
    assert item.names is not None and item.node.children is not None and item.parent is not None
    node, children = item.node, item.node.children
    content = bytearray()
    start = used = 0
    names = item.names
    for index, name in enumerate(names):
        need = DIRENT_BYTES + len(name)
        if used + need > BLOCK_BYTES:
            _pack_block(content, names[start:index], node, item.parent, children)
            content += bytes(-len(content) % BLOCK_BYTES)
            start, used = index, 0
        used += need
    _pack_block(content, names[start:], node, item.parent, children)
    return bytes(content)


def _pack_block(
    content: bytearray, names: list[bytes], node: Node, parent: Node, children: dict[bytes, Node]
) -> None:
    name_offset = DIRENT_BYTES * len(names)
    pack = DIRENT.pack
    for name in names:
        child = node if name == b"." else parent if name == b".." else children[name]
        content += pack(child.nid, name_offset, DIRENT_TYPES[stat.S_IFMT(child.mode)], 0)
        name_offset += len(name)
    for name in names:
        content += name
