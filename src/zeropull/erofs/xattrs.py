"""Inline extended attributes of EROFS inodes (Linux fs/erofs/erofs_fs.h, `erofs_xattr_entry`)."""

from __future__ import annotations

import struct

from zeropull.errors import ImageError, IntegrityError

HEADER_BYTES = 12
_MAX_BYTES = HEADER_BYTES + (0xFFFF - 1) * 4
_ENTRY = struct.Struct("<BBH")
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_OWNER, _ACL_GROUP, _ACL_MASK, _ACL_OTHER = 0x01, 0x04, 0x10, 0x20
ACL_XATTR = b"system.posix_acl_access"
# The two access control lists have no name behind their prefix.
_PREFIXES = (
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
)
_NAMES = {index: prefix for prefix, index in _PREFIXES}


def pack_xattrs(xattrs: dict[bytes, bytes] | None) -> bytes:
    """Header and entries, sorted by name; empty when nothing can be stored.

    Names outside Linux's namespaces are left out: no file system would have taken them.
    """
    if not xattrs:
        return b""
    body = bytearray()
    for name, value in sorted(xattrs.items()):
        prefix, index = next((known for known in _PREFIXES if name.startswith(known[0])), (b"", 0))
        if not index:
            continue
        rest = name[len(prefix) :]
        if bool(rest) == (index in (2, 3)):
            continue
        if len(value) > 0xFFFF:
            raise ImageError(f"extended attribute {name[:80]!r} has {len(value)} bytes, max. 65535")
        body += _ENTRY.pack(len(rest), index, len(value))
        body += rest
        body += value
        body += bytes(-len(body) % 4)
    if not body:
        return b""
    if HEADER_BYTES + len(body) > _MAX_BYTES:
        raise ImageError(f"extended attributes of one file take {len(body)} bytes, max. 262136")
    return bytes(HEADER_BYTES) + bytes(body)


def acl_after_chmod(acl: bytes, mode: int) -> bytes | None:
    """The access control list that is left of `acl` once its file gets `mode`, as unpacking does.

    None when the list says no more than the mode: Linux keeps no such list.

    Raises:
        ImageError: no list in Linux's form (include/uapi/linux/posix_acl_xattr.h, version 2).
    """
    if len(acl) < 4 or (len(acl) - 4) % _ACL_ENTRY.size or acl[:4] != b"\x02\0\0\0":
        raise ImageError("a file has a malformed POSIX access control list")
    entries = list(_ACL_ENTRY.iter_unpack(acl[4:]))
    tags = {tag for tag, _, _ in entries}
    if tags <= {_ACL_OWNER, _ACL_GROUP, _ACL_OTHER}:
        return None
    group = _ACL_MASK if _ACL_MASK in tags else _ACL_GROUP
    bits = {_ACL_OWNER: mode >> 6 & 7, group: mode >> 3 & 7, _ACL_OTHER: mode & 7}
    return acl[:4] + b"".join(
        _ACL_ENTRY.pack(tag, bits.get(tag, allowed), who) for tag, allowed, who in entries
    )


def unpack_xattrs(body: bytes) -> dict[bytes, bytes]:
    """The inverse of `pack_xattrs`."""
    xattrs: dict[bytes, bytes] = {}
    position = HEADER_BYTES
    while position + _ENTRY.size <= len(body):
        name_length, index, value_length = _ENTRY.unpack_from(body, position)
        start = position + _ENTRY.size
        value_start = start + name_length
        end = value_start + value_length
        if index not in _NAMES or end > len(body):
            raise IntegrityError("EROFS metadata: damaged extended attributes")
        xattrs[_NAMES[index] + body[start:value_start]] = body[value_start:end]
        position = end + -end % 4
    return xattrs
