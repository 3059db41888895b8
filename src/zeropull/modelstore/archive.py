"""Reads a model's tar strictly to its end: what it announces is there, or it is refused.

Members mean what GNU tar extracts (GNU tar manual, "Basic Tar Format"; POSIX pax(1)): sparse
members of GNU tar, bsdtar and macOS have holes, leading slashes are stripped, volume labels are no
files. Where GNU tar goes on after damage, this does not: an archive without its second half would
be a model without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from zeropull.erofs import sparse
from zeropull.erofs.tar_bytes import TarBytes
from zeropull.erofs.tar_headers import (
    BLOCK,
    SPECIAL_MAX_BYTES,
    Header,
    parse_header,
    parse_pax,
    pax_number,
)
from zeropull.errors import ArtifactError, UnreadableImage

_ZERO_BLOCK = bytes(BLOCK)
_EXTENDED = (b"x", b"X", b"L", b"K")
_FILES = (b"0", b"\0", b"7", b"S")  # 7 is a contiguous file, which only its file system knew
_FOLDERS = (b"5", b"D")  # D is a folder of an incremental archive, with a list of names as data
_NO_MEMBERS = (b"V", b"A")  # a volume label, an access control list of Solaris
# Records of a global header that would speak of every member alike.
_NOT_GLOBAL = frozenset({b"path", b"linkpath", b"size"})


class Kind(Enum):
    FILE = auto()
    FOLDER = auto()
    SYMLINK = auto()
    HARD_LINK = auto()
    DEVICE = auto()  # or a FIFO


_KINDS = {
    **dict.fromkeys(_FILES, Kind.FILE),
    **dict.fromkeys(_FOLDERS, Kind.FOLDER),
    b"1": Kind.HARD_LINK,
    b"2": Kind.SYMLINK,
    **dict.fromkeys((b"3", b"4", b"6"), Kind.DEVICE),
}


@dataclass(frozen=True, slots=True)
class Member:
    """`size` is the file's, `segments` (offset, length) what of it is stored, in this order; None:
    all of it. `mode` has permission bits only."""

    name: str
    kind: Kind
    mode: int
    size: int
    link: str
    segments: sparse.Segments | None = None


class ArchiveReader:
    """Iterate `members` once; `copy` hands out the data of the one that came last."""

    def __init__(self, parts: Iterator[memoryview]) -> None:
        self._parts = parts
        self._tar = TarBytes(parts)
        self._left = 0  # stored bytes of the member that came last

    def members(self) -> Iterator[Member]:
        """Every member, in order, and then everything that follows the end mark.

        Raises:
            ArtifactError: damaged, truncated, or of a form that is not known.
        """
        try:
            yield from self._members()
        except UnreadableImage as error:
            raise ArtifactError(str(error)) from error

    def copy(self, count: int, write: Callable[[memoryview], None]) -> None:
        """The next `count` stored bytes of the member.

        Raises:
            UnreadableImage: the archive ends before them.
        """
        self._left -= count
        self._tar.copy(count, write)

    def _members(self) -> Iterator[Member]:
        if (block := self._tar.block()) is None:
            raise ArtifactError("there is nothing in it")
        while block is not None and block != _ZERO_BLOCK:
            found = self._member(block)
            if found is not None:
                member, stored = found
                whole, self._left = stored, stored
                if member.segments is None and member.kind is Kind.FILE:
                    member, self._left = self._sparse(member, stored)
                yield member
                self._tar.skip(self._left)
                self._tar.skip_padding(whole)
            block = self._tar.block()
        if block == _ZERO_BLOCK and self._tar.block() not in (None, _ZERO_BLOCK):
            raise ArtifactError("a block of zeros stands between its members")
        for _ in self._parts:  # so that the checksum of the compressed stream is compared
            pass

    def _member(self, block: bytes) -> tuple[Member, int] | None:
        """The member that begins with this header, and the bytes that are stored for it."""
        self._records: dict[bytes, bytes] = {}
        self._pairs: list[tuple[bytes, bytes]] = []
        names = {b"L": b"", b"K": b""}
        header = parse_header(block)
        while header.typeflag in _EXTENDED:
            content = self._special(header)
            if header.typeflag in names:
                names[header.typeflag] = content.partition(b"\0")[0]
            else:
                self._records, self._pairs = parse_pax(content)
            following = self._tar.block()
            if following is None or following == _ZERO_BLOCK:
                raise ArtifactError("it ends after an extended header")
            block = following
            header = parse_header(block)
        if header.typeflag == b"g":
            self._pass_over_global(header)
            return None
        if header.typeflag in _NO_MEMBERS:
            self._tar.skip(header.size)
            self._tar.skip_padding(header.size)
            return None
        return self._read(block, header, names[b"L"], names[b"K"])

    def _read(
        self, block: bytes, header: Header, long_name: bytes, long_link: bytes
    ) -> tuple[Member, int]:
        records = self._records
        name = records.get(b"path") or long_name or header.name
        link = records.get(b"linkpath") or long_link or header.linkname
        kind = _KINDS.get(header.typeflag)
        if kind is None:
            raise ArtifactError(
                f"member {_text(name)!r} is of the unknown type {header.typeflag!r}"
            )
        if header.typeflag == b"\0" and name.endswith(b"/"):
            kind = Kind.FOLDER  # of archives older than ustar
        size = pax_number(records[b"size"], "size") if records.get(b"size") else header.size
        if size < 0:
            raise ArtifactError(f"member {_text(name)!r} has {size} bytes")
        has_data = kind is Kind.FILE or header.typeflag == b"D"
        stored = size if has_data else 0
        segments = None
        if header.typeflag == b"S":
            size, segments = sparse.old_gnu_map(block, self._tar.take)
            sparse.check_map(size, segments, stored)
        member = Member(_text(name), kind, header.mode, size, _text(link), segments)
        return member, stored

    def _sparse(self, member: Member, stored: int) -> tuple[Member, int]:
        """A member with the map of its holes, if its extended header announces one; and the bytes
        of data that follow the map."""
        records = self._records
        size, segments = member.size, None
        if records.get(b"GNU.sparse.major") == b"1":
            segments, used = sparse.pax_1_0_map(self._tar.take)
            stored -= used
            size = pax_number(records.get(b"GNU.sparse.realsize", b""), "sparse size")
        elif (old := sparse.pax_map(records, self._pairs)) is not None:
            size, segments = old
        if segments is None:
            return member, stored
        sparse.check_map(size, segments, stored)
        name = records.get(b"GNU.sparse.name")
        named = _text(name) if name else member.name
        return Member(named, member.kind, member.mode, size, member.link, segments), stored

    def _special(self, header: Header) -> bytes:
        if not 0 <= header.size <= SPECIAL_MAX_BYTES:
            raise ArtifactError(
                f"it has an extended header of {header.size:,} bytes, at most "
                f"{SPECIAL_MAX_BYTES:,} are read"
            )
        content = self._tar.take(header.size)
        self._tar.skip_padding(header.size)
        return content

    def _pass_over_global(self, header: Header) -> None:
        records, _ = parse_pax(self._special(header))
        if both := sorted(_NOT_GLOBAL & records.keys()):
            raise ArtifactError(f"a global header gives every member the same {_text(both[0])}")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
