"""The tree of one layer as its tar entries make it, by the rules of containerd's unpack.

Follows containerd's `archive.Apply` with `OverlayConvertWhiteout` (pkg/archive/tar.go): parents are
resolved through the symlinks of this layer and never leave it, the last entry of a name wins,
directories merge, whiteouts become character devices 0:0, opaque markers become
`trusted.overlay.opaque`, and the root's own entry is ignored.
"""

from __future__ import annotations

import stat
from array import array
from dataclasses import dataclass, field

from zeropull.erofs.xattrs import ACL_XATTR, acl_after_chmod
from zeropull.errors import ImageError

WHITEOUT_PREFIX = b".wh."
OPAQUE_MARKER = b".wh..wh..opq"
OPAQUE_XATTR = b"trusted.overlay.opaque"
CAPABILITY_XATTR = b"security.capability"

NAME_MAX = 255
PATH_MAX = 4096
SYMLINKS_MAX = 255
KEPT_OWNER = 0xFFFFFFFF  # chown(2) takes -1 for "leave it as it is"


class Node:
    """One inode. Slots keep a layer of a million entries in memory.

    `mode` is the whole st_mode. Regular files: `size` and either `block`, the first 4 KiB block of
    their contiguous data, or `chunks` (sparse), first blocks of chunks of 2**`chunk_bits` bytes.
    `implied`: a directory that no entry of this layer describes. `lower`: the path of a hard link's
    target that must lie in a lower layer. `nid`, `nlink`: set when metadata is written.
    """

    __slots__ = (
        "block",
        "children",
        "chunk_bits",
        "chunks",
        "gid",
        "implied",
        "lower",
        "mode",
        "mtime_ns",
        "mtime_s",
        "nid",
        "nlink",
        "rdev",
        "size",
        "target",
        "uid",
        "xattrs",
    )

    def __init__(self, mode: int, uid: int = 0, gid: int = 0) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime_s = 0
        self.mtime_ns = 0
        self.rdev = 0
        self.size = 0
        self.block = 0
        self.chunk_bits = 0
        self.chunks: array[int] | None = None
        self.target = b""
        self.xattrs: dict[bytes, bytes] | None = None
        self.children: dict[bytes, Node] | None = {} if stat.S_ISDIR(mode) else None
        self.implied = False
        self.lower: bytes | None = None
        self.nid = 0
        self.nlink = 0

    def set_xattr(self, name: bytes, value: bytes) -> None:
        if self.xattrs is None:
            self.xattrs = {}
        self.xattrs[name] = value


@dataclass(slots=True)
class Entry:
    """One tar member after its extended headers were applied; `kind` is an S_IFMT value or, for a
    hard link, 0. `mode` has permission bits only, `target` a symlink's or hard link's."""

    name: bytes
    kind: int
    mode: int
    uid: int
    gid: int
    mtime_s: int
    mtime_ns: int
    target: bytes = b""
    rdev: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class LayerTree:
    """Grows by `add`, in the order of the tar stream; `entries` counts the members that it kept."""

    def __init__(self) -> None:
        self.root = Node(stat.S_IFDIR | 0o755)
        self.root.implied = True
        self.implied: list[tuple[bytes, Node]] = []
        self.pending: dict[bytes, Node] = {}
        self.entries = 0
        # Directories by path, as members have named them. Only a directory or symlink that goes, or
        # a symlink that comes, can make a path lead elsewhere.
        self._parents: dict[bytes, Node] = {}

    def add(self, entry: Entry) -> Node | None:
        """Apply one member; returns the new node of a regular file, whose data then follows.

        Raises:
            ImageError: containerd would refuse the member as well.
        """
        clean = clean_path(entry.name)
        parent_path, _, base = clean.rpartition(b"/")
        if base in (b"", b".", b".."):
            return None  # the root itself: containerd keeps its own
        if len(base) > NAME_MAX or len(clean) > PATH_MAX:
            raise ImageError(f"{_show(clean)}: the name is longer than Linux allows")
        parent = self._parent(parent_path)
        children = parent.children
        assert children is not None
        self.entries += 1
        if base.startswith(WHITEOUT_PREFIX):
            self._whiteout(parent, base, entry)
            return None
        existing = children.get(base)
        if existing is not None and not (
            existing.children is not None and entry.kind == stat.S_IFDIR
        ):
            del children[base]
            if existing.children is not None or stat.S_ISLNK(existing.mode):
                self._parents.clear()
            existing = None
        if entry.kind == stat.S_IFREG and not entry.xattrs:
            node = children[base] = _plain_file(entry)
            return node
        if entry.kind == 0:
            node = self._link_target(entry)
        elif existing is not None:
            node = existing
            node.implied = False
        else:
            node = Node(entry.kind)
            node.rdev = entry.rdev
            node.target = entry.target
        _apply_attributes(node, entry)
        if stat.S_ISLNK(node.mode):
            self._parents.clear()
        children[base] = node
        return node if entry.kind == stat.S_IFREG else None

    def find(self, path: bytes) -> Node | None:
        """The node at a literal path, symlinks not followed."""
        node: Node | None = self.root
        for name in _names(path):
            node = node.children.get(name) if node and node.children is not None else None
        return node

    def _parent(self, path: bytes) -> Node:
        known = self._parents.get(path)
        if known is not None:
            return known
        node = self.root
        walked: list[bytes] = []
        for name, found in self._resolve(path):
            walked.append(name)
            if found is None:
                # The resolution may name a path that an earlier step has just made.
                assert node.children is not None
                found = node.children.get(name)
            if found is None:
                if len(name) > NAME_MAX:
                    raise ImageError(f"{_show(path)}: a name in it is longer than 255 bytes")
                found = Node(stat.S_IFDIR | 0o755)
                found.implied = True
                assert node.children is not None
                node.children[name] = found
                self.implied.append((b"/".join(walked), found))
            elif found.children is None:
                raise ImageError(f"{_show(path)}: {_show(name)} is not a directory in its layer")
            node = found
        self._parents[path] = node
        return node

    def _resolve(self, path: bytes) -> list[tuple[bytes, Node | None]]:
        """Follow symlinks inside this layer only; None where nothing exists (yet)."""
        walked: list[tuple[bytes, Node | None]] = []
        waiting = _names(path)[::-1]
        links = 0
        while waiting:
            name = waiting.pop()
            if name == b"..":
                if walked:
                    walked.pop()
                continue
            current = walked[-1][1] if walked else self.root
            found = current.children.get(name) if current and current.children is not None else None
            if found is not None and stat.S_ISLNK(found.mode):
                links += 1
                if links > SYMLINKS_MAX:
                    raise ImageError(f"{_show(path)}: more than {SYMLINKS_MAX} symbolic links")
                if found.target.startswith(b"/"):
                    walked.clear()
                waiting.extend(_names(found.target)[::-1])
                continue
            walked.append((name, found))
        return walked

    def _link_target(self, entry: Entry) -> Node:
        directory, _, base = entry.target.rpartition(b"/")
        walked = [name for name, _ in self._resolve(directory)]
        if base == b".." and walked:
            walked.pop()
        elif base not in (b"", b".", b".."):
            walked.append(base)
        path = b"/".join(walked)
        node = self.find(path)
        if node is None:
            node = self.pending.get(path)
        if node is None:
            node = Node(stat.S_IFREG)
            node.lower = path
            self.pending[path] = node
        elif node.children is not None:
            raise ImageError(f"{_show(entry.name)}: hard link to the directory {_show(path)}")
        return node

    def _whiteout(self, parent: Node, base: bytes, entry: Entry) -> None:
        children = parent.children
        assert children is not None
        if base == OPAQUE_MARKER:
            parent.set_xattr(OPAQUE_XATTR, b"y")
            return
        hidden = base[len(WHITEOUT_PREFIX) :]
        if hidden in (b"", b".", b".."):
            raise ImageError(f"{_show(entry.name)}: invalid whiteout name")
        existing = children.get(hidden)
        if existing is not None:
            # A whiteout speaks of lower layers only. containerd 1.6 fails here (mknod: EEXIST).
            if existing.children is not None:
                existing.set_xattr(OPAQUE_XATTR, b"y")
            return
        node = Node(stat.S_IFCHR)
        if entry.uid != KEPT_OWNER:
            node.uid = entry.uid
        if entry.gid != KEPT_OWNER:
            node.gid = entry.gid
        children[hidden] = node


def clean_path(path: bytes) -> bytes:
    """The path from the layer's root, lexically cleaned as Go's filepath.Clean, `..` contained."""
    if b"/." not in path and b"//" not in path and path[:1] not in (b"/", b".", b""):
        return path.rstrip(b"/")
    kept: list[bytes] = []
    for name in path.split(b"/"):
        if name == b"..":
            if kept:
                kept.pop()
        elif name not in (b"", b"."):
            kept.append(name)
    return b"/".join(kept)


def _names(path: bytes) -> list[bytes]:
    return [name for name in path.split(b"/") if name not in (b"", b".")]


def _plain_file(entry: Entry) -> Node:
    """As `_apply_attributes` would leave a new one, for what most members are."""
    node = Node(stat.S_IFREG | entry.mode)
    if entry.uid != KEPT_OWNER:
        node.uid = entry.uid
    if entry.gid != KEPT_OWNER:
        node.gid = entry.gid
    node.mtime_s = entry.mtime_s
    node.mtime_ns = entry.mtime_ns
    return node


def _apply_attributes(node: Node, entry: Entry) -> None:
    if entry.uid != KEPT_OWNER:
        node.uid = entry.uid
    if entry.gid != KEPT_OWNER:
        node.gid = entry.gid
    kind = stat.S_IFMT(node.mode)
    if entry.kind == 0 and node.xattrs:
        # The chown that unpacking a hard link does takes the file's capabilities away.
        node.xattrs.pop(CAPABILITY_XATTR, None)
    for name, value in entry.xattrs.items():
        if name.startswith(b"user.") and kind not in (stat.S_IFREG, stat.S_IFDIR):
            continue  # Linux has no user attributes on these
        node.set_xattr(name, value)
    node.mode = kind | (0o777 if kind == stat.S_IFLNK else entry.mode)
    if node.xattrs and ACL_XATTR in node.xattrs and kind != stat.S_IFLNK:
        left = acl_after_chmod(node.xattrs.pop(ACL_XATTR), entry.mode)
        if left is not None:
            node.xattrs[ACL_XATTR] = left
    node.mtime_s = entry.mtime_s
    node.mtime_ns = entry.mtime_ns


def _show(name: bytes) -> str:
    text = name.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 200 else text[:200] + "...")
