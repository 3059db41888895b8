"""Reads a layer's tar stream once: entries go to a LayerTree, file contents to a data sink."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from zeropull.erofs import sparse
from zeropull.erofs.tar_bytes import TarBytes
from zeropull.erofs.tar_headers import (
    BLOCK,
    KINDS,
    SPACES_SUM,
    SPECIAL_MAX_BYTES,
    Header,
    bounded_time,
    byte_sum,
    owner,
    parse_header,
    parse_pax,
    pax_number,
    pax_time,
    pax_xattrs,
)
from zeropull.erofs.tree import Entry, LayerTree, Node, clean_path
from zeropull.errors import ImageError, UnreadableImage

# Far above what real images have: the largest layers known have some 100 GB and a million entries.
LAYER_BYTES = 256 << 30
LAYER_ENTRIES = 4_000_000
_ZERO_BLOCK = bytes(BLOCK)
_ZEROS = memoryview(bytes(1 << 16))


@dataclass(frozen=True, slots=True)
class LayerLimits:
    """What one layer may cost. `data_bytes`: its tar stream, and its file contents with the zeros
    between sparse parts; `entries`: a million of them take some 500 MB of memory while the layer is
    converted. Compression says nothing: gzip makes a thousandth of a log that is full of zeros.
    `known_headers`: headers that are remembered, so that one like them is not parsed again."""

    data_bytes: int = LAYER_BYTES
    entries: int = LAYER_ENTRIES
    known_headers: int = 4096


class DataSink(Protocol):
    """Where file contents go, in order."""

    def begin(self) -> int:
        """Pad to a 4 KiB boundary; returns the block that the next byte falls into."""

    def write(self, data: memoryview) -> None:
        """Append; the view may be reused as soon as this returns."""


class LayerReader:
    """`read` consumes the whole tar stream, also what follows its end marker.

    The buffers of the stream may be reused by their maker once the next one is asked for.
    """

    def __init__(
        self, stream: Iterator[memoryview], sink: DataSink, limits: LayerLimits | None = None
    ) -> None:
        self.tree = LayerTree()
        self.file_bytes = 0  # sizes of the regular files, holes included
        self._limits = limits or LayerLimits()
        self._alike = _Alike(self._limits.known_headers)
        self._stream = stream
        self._bytes = TarBytes(stream)
        self._sink = sink
        self._data_bytes = 0

    def read(self) -> LayerTree:
        """Raises:
        UnreadableImage: the stream is truncated or malformed.
        ImageError: it is larger than the limits allow, or containerd would refuse it as well.
        """
        while True:
            block = self._bytes.block()
            if block is None:
                break
            if block == _ZERO_BLOCK:
                second = self._bytes.block()
                if second is not None and second != _ZERO_BLOCK:
                    raise UnreadableImage("the tar stream has a lone zero block inside")
                break
            if not self._member(block):
                break
        for _ in self._stream:
            pass
        return self.tree

    def _member(self, block: bytes) -> bool:
        """Read one member; False when there was none, and the stream has ended."""
        known = self._alike.entry(block)
        if known is not None:
            entry, stored = known
            self._check_entries()
            self._check_size(entry, stored)
            self._whole_file(self.tree.add(entry), stored)
            self._bytes.skip_padding(stored)
            return True
        records: dict[bytes, bytes] = {}
        pairs: list[tuple[bytes, bytes]] = []
        long_name = long_link = b""
        while True:
            header = parse_header(block)
            kind = header.typeflag
            if kind == b"x":
                records, pairs = parse_pax(self._special(header))
            elif kind == b"L":
                long_name = self._special(header).partition(b"\0")[0]
            elif kind == b"K":
                long_link = self._special(header).partition(b"\0")[0]
            elif kind == b"g":
                parse_pax(self._special(header))
                return True
            else:
                break
            following = self._bytes.block()
            if following is None or following == _ZERO_BLOCK:
                return False  # an extended header of nothing, which Go takes for the end, too
            block = following
        if kind not in KINDS:
            raise UnreadableImage(f"{header.name[:200]!r}: tar entry of the unknown type {kind!r}")
        entry, stored = _entry(header, records, long_name, long_link)
        if kind == b"0" and not long_name and not records:
            self._alike.keep(block, entry)
        self._check_entries()
        if entry.kind != KINDS[b"0"]:
            self.tree.add(entry)
            return True
        self._check_size(entry, stored)
        self._regular(block, entry, stored, records, pairs)
        return True

    def _regular(
        self,
        block: bytes,
        entry: Entry,
        stored: int,
        records: dict[bytes, bytes],
        pairs: list[tuple[bytes, bytes]],
    ) -> None:
        whole = stored
        sparse_map: tuple[int, sparse.Segments] | None = None
        if block[156:157] == b"S":
            sparse_map = sparse.old_gnu_map(block, self._bytes.take)
        elif records.get(b"GNU.sparse.major") == b"1":
            segments, used = sparse.pax_1_0_map(self._bytes.take)
            size = pax_number(records.get(b"GNU.sparse.realsize", b""), "sparse size")
            sparse_map, stored = (size, segments), stored - used
        else:
            sparse_map = sparse.pax_map(records, pairs)
        if sparse_map is not None:
            name = records.get(b"GNU.sparse.name")
            if name:
                entry.name = name
            sparse.check_map(*sparse_map, stored)
        node = self.tree.add(entry)
        if node is not None and sparse_map is not None:
            self._place_sparse(node, *sparse_map)
        else:
            self._whole_file(node, stored)
        self._bytes.skip_padding(whole)

    def _whole_file(self, node: Node | None, stored: int) -> None:
        """The contents of a file without holes; skipped where the tree has no place for it."""
        if node is None:
            self._bytes.skip(stored)
        elif stored:
            node.size = stored
            node.block = self._sink.begin()
            self.file_bytes += stored
            self._copy(stored)

    def _check_entries(self) -> None:
        if self.tree.entries >= self._limits.entries:
            raise ImageError(
                f"the layer has more than {self._limits.entries:,} entries: raise the setting "
                "fleet.layer_entries"
            )

    def _check_size(self, entry: Entry, stored: int) -> None:
        if not 0 <= stored <= self._limits.data_bytes - self._data_bytes:
            raise ImageError(
                f"{entry.name[:200]!r}: {stored} more bytes would be over the layer's limit of "
                f"{self._limits.data_bytes}: raise the setting fleet.layer_bytes"
            )

    def _place_sparse(self, node: Node, size: int, segments: sparse.Segments) -> None:
        node.size = size
        self.file_bytes += size
        node.chunk_bits, node.chunks = sparse.place(
            size, segments, self._sink.begin, self._copy, self._zeros
        )

    def _special(self, header: Header) -> bytes:
        if not 0 <= header.size <= SPECIAL_MAX_BYTES:
            raise UnreadableImage(
                f"the tar has an extended header of {header.size} bytes, "
                f"at most {SPECIAL_MAX_BYTES} are read"
            )
        content = self._bytes.take(header.size)
        self._bytes.skip_padding(header.size)
        return content

    def _charge(self, count: int) -> None:
        self._data_bytes += count
        if self._data_bytes > self._limits.data_bytes:
            raise ImageError(
                f"the layer has more than {self._limits.data_bytes:,} bytes of data: raise the "
                "setting fleet.layer_bytes"
            )

    def _copy(self, count: int) -> None:
        self._charge(count)
        self._bytes.copy(count, self._sink.write)

    def _zeros(self, count: int) -> None:
        self._charge(count)
        while count:
            part = min(count, len(_ZEROS))
            self._sink.write(_ZEROS[:part])
            count -= part


class _Alike:
    """Regular files whose headers differ from an earlier one in name, size and checksum only, as
    most do: their entries need not be read anew."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[tuple[bytes, bytes, bytes], tuple[bytes, Entry, int]] = {}

    def entry(self, block: bytes) -> tuple[Entry, int] | None:
        """The entry, which stands until the next one is asked for, and the size of what is stored.
        None for a header that has to be read: also where it may be damaged."""
        known = self._known.get((block[100:124], block[136:148], block[156:]))
        if known is None:
            return None
        prefix, entry, sum_of_known = known
        name, size = block[:100], block[124:136]
        checksum = sum_of_known + byte_sum(name) + byte_sum(size)
        digits = size[:-1]
        if block[148:156] != b"%06o\0 " % checksum or not digits.isdigit() or size[-1]:
            return None
        try:
            stored = int(digits, 8)
        except ValueError:
            return None  # an 8 or a 9
        entry.name = prefix + name.partition(b"\0")[0]
        return entry, stored

    def keep(self, block: bytes, entry: Entry) -> None:
        if not self._most:
            return
        if len(self._known) == self._most:
            self._known.clear()
        name = block[:100].partition(b"\0")[0]
        prefix = entry.name[: len(entry.name) - len(name)]
        key = block[100:124], block[136:148], block[156:]
        self._known[key] = prefix, replace(entry), sum(map(sum, key)) + SPACES_SUM


def _entry(
    header: Header,
    records: dict[bytes, bytes],
    long_name: bytes,
    long_link: bytes,
) -> tuple[Entry, int]:
    """The member with its extended headers applied, and the bytes stored for it."""
    name, target, stored = header.name, header.linkname, header.size
    uid, gid = header.uid, header.gid
    mtime_s, mtime_ns = bounded_time(header.mtime)
    xattrs: dict[bytes, bytes] = {}
    if records:
        name = records.get(b"path") or name
        target = records.get(b"linkpath") or target
        if value := records.get(b"size"):
            stored = pax_number(value, "size")
        if value := records.get(b"uid"):
            uid = pax_number(value, "uid")
        if value := records.get(b"gid"):
            gid = pax_number(value, "gid")
        if value := records.get(b"mtime"):
            mtime_s, mtime_ns = pax_time(value)
        xattrs = pax_xattrs(records)
    name, target = long_name or name, long_link or target
    kind = KINDS[header.typeflag]
    if header.typeflag == b"\0" and name.endswith(b"/"):
        kind = KINDS[b"5"]  # directories of archives older than ustar
    if kind == KINDS[b"2"] and not 0 < len(target) < 4096:
        raise ImageError(f"{clean_path(name)[:200]!r}: symbolic link of {len(target)} bytes")
    entry = Entry(
        name,
        kind,
        header.mode,
        owner(uid, "uid"),
        owner(gid, "gid"),
        mtime_s,
        mtime_ns,
        target if kind in (0, KINDS[b"2"]) else b"",
        header.rdev,
        xattrs,
    )
    return entry, stored
