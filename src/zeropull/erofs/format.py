"""EROFS on-disk structures that we write and read (Linux fs/erofs/erofs_fs.h).

Little-endian; 4 KiB blocks; extended inodes only; regular files chunk-based on device 1.
"""

from __future__ import annotations

import stat
import struct

import google_crc32c

BLOCK_BITS = 12
BLOCK_BYTES = 1 << BLOCK_BITS
SUPER_OFFSET = 1024
SUPER_BYTES = 128
SLOT_OFFSET = SUPER_OFFSET + SUPER_BYTES
SLOT_BYTES = 128
INODES_OFFSET = SLOT_OFFSET + SLOT_BYTES  # also without a device: nid 0 hides entries from libc
NID_BYTES = 32

MAGIC = 0xE0F5E1E2
COMPAT_CHECKSUM = 0x1
INCOMPAT_CHUNKED_FILE = 0x4
INCOMPAT_DEVICE_TABLE = 0x8

LAYOUT_PLAIN = 0
LAYOUT_INLINE = 2
LAYOUT_CHUNKS = 4
CHUNK_INDEXES = 0x20
CHUNK_BITS_MAX = 30  # fsck.erofs 1.5 crashes on larger chunks
NO_BLOCK = 0xFFFFFFFF

# magic, checksum, feature_compat, blkszbits, extslots, root_nid, inos, build_time, build_nsec,
# blocks, meta_blkaddr, xattr_blkaddr, uuid, volume_name, feature_incompat, compression,
# extra_devices, devt_slotoff, and zeros
SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHH38x")
SLOT = struct.Struct("<64sII56x")
# format, xattr_icount, mode, reserved, size, i_u, ino, uid, gid, mtime, mtime_ns, nlink, zeros
INODE = struct.Struct("<HHHHQIIIIQII16x")
INODE_BYTES = 64
DIRENT = struct.Struct("<QHBB")
DIRENT_BYTES = 12
CHUNK_INDEX = struct.Struct("<HHI")
CHUNK_INDEX_BYTES = 8

DIRENT_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}

assert SUPER.size == SUPER_BYTES and SLOT.size == SLOT_BYTES and INODE.size == INODE_BYTES


def super_checksum(first_block: bytes | bytearray) -> int:
    """CRC32C without its final inversion, of block 0 from the superblock on, checksum field 0."""
    content = bytearray(first_block[SUPER_OFFSET:BLOCK_BYTES])
    content[4:8] = bytes(4)
    return int(google_crc32c.value(bytes(content))) ^ 0xFFFFFFFF
