"""Tar header blocks: ustar, GNU and PAX fields, as Go's archive/tar reads them.

containerd unpacks with that package, so its reader decides what a header means
(https://cs.opensource.google/go/go/+/master:src/archive/tar/reader.go).

Format: POSIX pax(1), "ustar Interchange Format" and "pax Header Block"; GNU tar manual, "Basic Tar
Format". Global PAX headers are read past, not applied, which is what containerd does with them.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from functools import lru_cache
from zlib import adler32

from zeropull.errors import UnreadableImage

BLOCK = 512
SPACES_SUM = 8 * 32  # the checksum's own field counts as spaces
SPECIAL_MAX_BYTES = 1 << 20  # one PAX or GNU long-name record, the limit of Go's reader
XATTR_PREFIX = b"SCHILY.xattr."
_TRUSTED = XATTR_PREFIX + b"trusted."
_OCTAL = re.compile(rb"[0-7]+")
XATTR_NAME_MAX = 255
XATTR_VALUE_MAX = 65536
TIME_MAX_S = (2**63 - 1) // 10**9  # containerd turns times outside 1970..2262 into 1970

KINDS = {
    b"0": stat.S_IFREG,
    b"\0": stat.S_IFREG,
    b"S": stat.S_IFREG,
    b"1": 0,
    b"2": stat.S_IFLNK,
    b"3": stat.S_IFCHR,
    b"4": stat.S_IFBLK,
    b"5": stat.S_IFDIR,
    b"6": stat.S_IFIFO,
}


@dataclass(slots=True)
class Header:
    """The fixed fields of one header block. `typeflag` as it is stored."""

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    typeflag: bytes
    linkname: bytes
    rdev: int


def parse_header(block: bytes) -> Header:
    """Parse 512 bytes that are not all zero.

    Raises:
        UnreadableImage: wrong checksum, or a field that is no number.
    """
    stored = _number(block[148:156], "checksum")
    unsigned = byte_sum(block[:148]) + byte_sum(block[156:400]) + byte_sum(block[400:]) + SPACES_SUM
    if stored != unsigned and stored != unsigned - 256 * sum(
        byte > 127 for byte in block[:148] + block[156:]
    ):
        raise UnreadableImage("this is not a tar stream: a header block has a wrong checksum")
    name = _text(block[:100])
    typeflag = block[156:157]
    prefix = _name_prefix(block)
    if prefix:
        name = prefix + b"/" + name
    rdev = 0
    if typeflag in (b"3", b"4"):
        major, minor = _number(block[329:337], "devmajor"), _number(block[337:345], "devminor")
        if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
            raise UnreadableImage(f"device numbers {major}:{minor} are beyond what Linux knows")
        rdev = (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)
    return Header(
        name,
        _known_number(block[100:108], "mode") & 0o7777,
        _known_number(block[108:116], "uid"),
        _known_number(block[116:124], "gid"),
        _number(block[124:136], "size"),
        _known_number(block[136:148], "mtime"),
        typeflag,
        _text(block[157:257]),
        rdev,
    )


def _name_prefix(block: bytes) -> bytes:
    """What stands before the name in a header of its own kind."""
    magic = block[257:265]
    if magic[:6] == b"ustar\0":
        # Whatever the version says: archives of old Java tools have two zero bytes there.
        is_star = block[508:512] == b"tar\0"
        return _text(block[345:476] if is_star else block[345:500])
    if magic == b"ustar  \0" and not _are_gnu_times(block):
        # Docker before 17.06 was built with a Go whose writer put a ustar prefix into GNU headers
        # (https://github.com/golang/go/issues/12594).
        prefix = _text(block[345:500])
        return prefix if prefix.isascii() else b""
    return b""


def _are_gnu_times(block: bytes) -> bool:
    """Whether the times of access and change, which lie where ustar's prefix does, are numbers."""
    try:
        for field in (block[345:357], block[357:369]):
            if field[0]:
                _number(field, "time")
    except UnreadableImage:
        return False
    return True


def parse_pax(content: bytes) -> tuple[dict[bytes, bytes], list[tuple[bytes, bytes]]]:
    """Records of one PAX extended header, and the GNU 0.0 sparse records, whose order matters.

    Raises:
        UnreadableImage: a malformed record.
    """
    records: dict[bytes, bytes] = {}
    sparse: list[tuple[bytes, bytes]] = []
    position = 0
    while position < len(content):
        space = content.find(b" ", position, position + 12)
        digits = content[position:space] if space > position else b""
        length = int(digits) if digits.isdigit() else 0
        end = position + length
        record = content[space + 1 : end - 1]
        key, equals, value = record.partition(b"=")
        if length < 5 or end > len(content) or content[end - 1] != 0x0A or not equals or not key:
            raise UnreadableImage("the tar has a malformed PAX extended header")
        if key in (b"path", b"linkpath") and b"\0" in value:
            raise UnreadableImage(f"the tar has a PAX {key.decode()} with a zero byte in it")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            sparse.append((key, value))
        else:
            records[key] = value
        position = end
    return records, sparse


def pax_number(value: bytes, key: str) -> int:
    """A decimal number, with or without a sign."""
    text = value[1:] if value[:1] in (b"-", b"+") else value
    if not text.isdigit() or len(text) > 20:
        raise UnreadableImage(f"PAX {key} {value[:40]!r} is not a number")
    return int(value)


def pax_time(value: bytes) -> tuple[int, int]:
    """Seconds and nanoseconds; digits beyond nanoseconds are cut off."""
    whole, _, fraction = value.partition(b".")
    if fraction and not fraction.isdigit():
        raise UnreadableImage(f"PAX mtime {value[:40]!r} is not a time")
    seconds = pax_number(whole or b"0", "mtime")
    nanoseconds = int(fraction[:9].ljust(9, b"0")) if fraction else 0
    if value.startswith(b"-"):
        return 0, 0
    return bounded_time(seconds, nanoseconds)


def bounded_time(seconds: int, nanoseconds: int = 0) -> tuple[int, int]:
    return (seconds, nanoseconds) if 0 <= seconds < TIME_MAX_S else (0, 0)


def pax_xattrs(records: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Extended attributes that Linux can hold; names outside its namespaces are left out.

    Only SCHILY records count, as for containerd; LIBARCHIVE ones repeat them in another encoding.
    `trusted.` ones are left out, as by containerd: overlayfs obeys its own among them, with which a
    layer could hide or redirect the files of others.
    """
    xattrs = {}
    for key, value in records.items():
        if not key.startswith(XATTR_PREFIX) or key.startswith(_TRUSTED):
            continue
        name = key[len(XATTR_PREFIX) :]
        if len(name) > XATTR_NAME_MAX or len(value) > XATTR_VALUE_MAX:
            raise UnreadableImage(f"extended attribute {name[:80]!r} is larger than Linux allows")
        xattrs[name] = value
    return xattrs


def owner(value: int, what: str) -> int:
    """A user or group ID as chown(2) takes it."""
    if not -(1 << 31) <= value < 1 << 32:
        raise UnreadableImage(f"{what} {value} does not fit into 32 bits")
    return value & 0xFFFFFFFF


def byte_sum(part: bytes) -> int:
    """Of at most 256 bytes: Adler-32 keeps it, plus one, modulo 65521, which it is below."""
    return (adler32(part) & 0xFFFF) - 1


def _number(field: bytes, what: str) -> int:
    """Octal text, or base-256 when the first bit is set (two's complement)."""
    digits = field[:-1]
    if digits.isdigit() and field[-1] in b" \0":
        try:
            return int(digits, 8)
        except ValueError:
            pass  # an 8 or a 9: said below
    first = field[0]
    if first & 0x80:
        number = int.from_bytes(field, "big")
        bits = 8 * len(field)
        if first & 0x40:
            return number - (1 << bits)
        return number ^ (1 << (bits - 1))
    text = field.strip(b" \0").partition(b"\0")[0]
    if not text:
        return 0
    if not _OCTAL.fullmatch(text):  # int() also takes signs, underscores and "0o"
        raise UnreadableImage(f"the tar has a header whose {what} is {field!r}")
    return int(text, 8)


# Most members of a layer have the owner, the mode and often the time of another one.
_known_number = lru_cache(maxsize=4096)(_number)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def number_field(field: bytes, what: str) -> int:
    """A number of an old GNU sparse map."""
    return _number(field, what)
