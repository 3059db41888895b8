"""What a layer takes from the layers below it: implied directories and hard links downwards.

containerd makes directories that a layer only implies with mode, owner, times and attributes of
the lower layer's directory (`mkparent` in pkg/archive/tar.go). A hard link to a file of a lower
layer becomes a copy of that file in this layer, as overlayfs would copy it up.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from zeropull.erofs.format import BLOCK_BYTES, NO_BLOCK
from zeropull.erofs.reader import Inode, MetadataImage
from zeropull.erofs.tree import OPAQUE_XATTR, SYMLINKS_MAX, LayerTree, Node
from zeropull.errors import ImageError


@dataclass(frozen=True, slots=True)
class CopyUp:
    """`length` bytes at `source` in the data file of lower layer `layer` (0 = the one right below)
    go to `destination` in this layer's data file. All three are multiples of 4 KiB."""

    layer: int
    source: int
    destination: int
    length: int


def fill_implied(tree: LayerTree, lowers: Sequence[MetadataImage]) -> None:
    """Give implied directories the attributes that the topmost of `lowers` (top-first) has."""
    absent: set[bytes] = set()
    for path, node in tree.implied:
        if path.rpartition(b"/")[0] in absent:  # nothing is below what is nowhere
            absent.add(path)
            continue
        for image in lowers:
            found = _resolve(image, path)
            if found is None:
                continue
            if found.is_directory:
                _take_attributes(node, image, found)
            break
        else:
            absent.add(path)


def resolve_links(
    tree: LayerTree, lowers: Sequence[MetadataImage], data_blocks: int
) -> list[CopyUp]:
    """Turn hard links into lower layers into files of this layer, whose data goes behind block
    `data_blocks`; returns what must be copied there, in order.

    Raises:
        ImageError: a target does not exist in any layer, or is a directory.
    """
    copies: list[CopyUp] = []
    for path, node in tree.pending.items():
        found = _merged(lowers, path)
        if found is None or found[1].is_directory:
            what = "a directory" if found else "missing"
            raise ImageError(f"hard link to {path[:200]!r}, which is {what} in the layers below")
        layer, inode = found
        image = lowers[layer]
        xattrs = {k: v for k, v in image.xattrs(inode).items() if k != b"security.capability"}
        for name, value in (node.xattrs or {}).items():
            xattrs[name] = value
        node.xattrs = xattrs or None
        kind = stat.S_IFMT(inode.mode)
        node.mode = kind | (0o777 if kind == stat.S_IFLNK else node.mode & 0o7777)
        node.rdev = inode.rdev
        if kind == stat.S_IFLNK:
            node.target = image.target(inode)
        elif kind == stat.S_IFREG and inode.size:
            node.size = inode.size
            node.chunk_bits, blocks = image.chunks(inode)
            node.chunks = array("I")
            for index, block in enumerate(blocks):
                if block == NO_BLOCK:
                    node.chunks.append(NO_BLOCK)
                    continue
                length = min(1 << node.chunk_bits, inode.size - (index << node.chunk_bits))
                length += -length % BLOCK_BYTES
                node.chunks.append(data_blocks)
                copies.append(CopyUp(layer, block * BLOCK_BYTES, data_blocks * BLOCK_BYTES, length))
                data_blocks += length // BLOCK_BYTES
        node.lower = None
    tree.pending.clear()
    return copies


def _take_attributes(node: Node, image: MetadataImage, found: Inode) -> None:
    if node.implied:
        node.mode, node.uid, node.gid = found.mode, found.uid, found.gid
        node.mtime_s, node.mtime_ns = found.mtime_s, found.mtime_ns
    if found.xattr_bytes:
        for name, value in image.xattrs(found).items():
            if not name.startswith(b"trusted.") and name not in (node.xattrs or {}):
                node.set_xattr(name, value)


def _resolve(image: MetadataImage, path: bytes) -> Inode | None:
    """The inode at `path` in one layer, symlinks followed inside it; None where there is none."""
    stack = [image.root]
    waiting = path.split(b"/")[::-1]
    links = 0
    while waiting:
        name = waiting.pop()
        if name in (b"", b"."):
            continue
        if name == b"..":
            if len(stack) > 1:
                stack.pop()
            continue
        found = image.lookup(stack[-1], name) if stack[-1].is_directory else None
        if found is None:
            return None
        if stat.S_ISLNK(found.mode):
            links += 1
            if links > SYMLINKS_MAX:
                return None
            target = image.target(found)
            if target.startswith(b"/"):
                del stack[1:]
            waiting.extend(target.split(b"/")[::-1])
            continue
        stack.append(found)
    return stack[-1]


def _merged(lowers: Sequence[MetadataImage], path: bytes) -> tuple[int, Inode] | None:
    """What overlayfs would show at `path` over `lowers`, with the layer that it comes from."""
    candidates = [(layer, image.root) for layer, image in enumerate(lowers)]
    for name in path.split(b"/"):
        following: list[tuple[int, Inode]] = []
        for layer, directory in candidates:
            found = lowers[layer].lookup(directory, name) if directory.is_directory else None
            if found is None:
                continue
            if not found.is_directory:
                if not following and not found.is_whiteout:
                    following.append((layer, found))
                break
            following.append((layer, found))
            if lowers[layer].xattrs(found).get(OPAQUE_XATTR) == b"y":
                break
        candidates = following
    return candidates[0] if candidates else None
