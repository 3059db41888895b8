"""fs-verity: files whose every read the kernel holds to a digest, and that nobody can write to.

Source: the kernel's Documentation/filesystems/fsverity.rst. It needs a kernel with CONFIG_FS_VERITY
and a file system that was made for it (`mkfs.ext4 -O verity`, f2fs, btrfs). A read of a page that
is not what it was fails with EIO.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

_ENABLE, _MEASURE = 0x40806685, 0xC0046686  # FS_IOC_ENABLE_VERITY, FS_IOC_MEASURE_VERITY
_ENABLE_ARGUMENT = struct.Struct("<IIIIQIIQ88x")
_VERSION, _SHA256, _BLOCK_BYTES = 1, 1, 4096
_DIGEST_HEAD = struct.Struct("<HH")  # algorithm, bytes of the digest
_DIGEST_MAX_BYTES = 64
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL})


def enable_verity(path: Path) -> bool:
    """Let the kernel vouch for the file from now on: it reads the file once, as it is now. True if
    it does; False if this kernel or file system cannot. Idempotent.

    Raises:
        OSError: another one: EIO, ENOSPC, ETXTBSY while somebody has the file open for writing.
    """
    argument = _ENABLE_ARGUMENT.pack(_VERSION, _SHA256, _BLOCK_BYTES, 0, 0, 0, 0, 0)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _ENABLE, argument)
    except OSError as error:
        if error.errno == errno.EEXIST:
            return True
        if error.errno in _UNSUPPORTED:
            return False
        raise
    finally:
        os.close(descriptor)
    return True


def measure_verity(path: Path) -> bytes | None:
    """The digest to which the kernel holds the file; None when it does not vouch for it."""
    answer = bytearray(_DIGEST_HEAD.size + _DIGEST_MAX_BYTES)
    _DIGEST_HEAD.pack_into(answer, 0, 0, _DIGEST_MAX_BYTES)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _MEASURE, answer)
    except OSError as error:
        if error.errno in _UNSUPPORTED or error.errno == errno.ENODATA:
            return None
        raise
    finally:
        os.close(descriptor)
    _, size = _DIGEST_HEAD.unpack_from(answer)
    return bytes(answer[_DIGEST_HEAD.size : _DIGEST_HEAD.size + size])
