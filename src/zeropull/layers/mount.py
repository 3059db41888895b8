"""Mount layers with mount(2): file-backed from Linux 6.12, through loop devices before that.

util-linux's mount would silently take a loop device (Linux Documentation/filesystems/erofs.rst).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import struct
from collections.abc import Iterator
from pathlib import Path

from zeropull.erofs.reader import image_sizes
from zeropull.errors import IntegrityError, NotFound, Unavailable
from zeropull.layers.layout import DATA_FILE, META_FILE

_MS_RDONLY = 1
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR = 1, 4
_LOOP_CONFIG_BYTES, _LOOP_FLAGS_OFFSET = 304, 8 + 52
_LOOP_TRIES = 32

_libc = ctypes.CDLL(None, use_errno=True)


def mount_layer(layer_dir: Path, target: Path, *, use_loop: bool | None = None) -> None:
    """Mount a layer read-only on the existing directory `target`.

    `use_loop` None: file-backed where the kernel can, loop devices otherwise. The kernel finds a
    data file that is too short only when it is read, so lengths are compared first, digests not.

    Raises:
        NotFound: the layer or the target is missing.
        IntegrityError: the files do not fit together, or the kernel refuses the image.
        Unavailable: this kernel or file system cannot mount it.
    """
    meta, data = layer_dir / META_FILE, layer_dir / DATA_FILE
    has_data = _check_lengths(meta, data)
    if use_loop is None:
        use_loop = not has_file_backed_mounts()
    if not use_loop:
        try:
            with _option_path(data) as name:
                _mount_files(meta, target, name if has_data else "")
        except OSError as error:
            if error.errno != errno.ENOTBLK:
                raise _mount_error(error, layer_dir, target) from error
        else:
            return
    with contextlib.ExitStack() as stack:
        # Autoclear frees the devices with the mount, or here when the mount fails.
        device = stack.enter_context(_loop_device(meta))
        options = f"device={stack.enter_context(_loop_device(data))}" if has_data else ""
        try:
            _mount(device, target, options)
        except OSError as error:
            raise _mount_error(error, layer_dir, target) from error


def unmount(target: Path, *, lazy: bool = False) -> bool:
    """Unmount; False when nothing was mounted there. `lazy` detaches a mount that is in use.

    Raises:
        Unavailable: it is busy.
    """
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    if _libc.umount2(os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOENT):
        return False
    raise Unavailable(f"cannot unmount {target}: {os.strerror(code)}")


def has_file_backed_mounts() -> bool:
    """Linux 6.12 and newer; a build without CONFIG_EROFS_FS_BACKED_BY_FILE says ENOTBLK later."""
    major, _, rest = platform.release().partition(".")
    minor = rest.partition(".")[0]
    return (int(major), int("".join(c for c in minor if c.isdigit()) or "0")) >= (6, 12)


def _check_lengths(meta: Path, data: Path) -> bool:
    """True when there is data to mount."""
    try:
        data_size = data.stat().st_size
        meta_size = meta.stat().st_size
        with meta.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise NotFound(f"{meta.parent} is no layer: {error.strerror}") from error
    blocks, data_blocks = image_sizes(head)
    if blocks * 4096 != meta_size or data_blocks * 4096 != data_size:
        raise IntegrityError(
            f"{meta.parent}: metadata and data have {meta_size} and {data_size} bytes, "
            f"expected {blocks * 4096} and {data_blocks * 4096}"
        )
    return data_blocks > 0


def _mount_files(meta: Path, target: Path, data: str) -> None:
    """With direct I/O from Linux 6.15 on: what is read of the data file is then kept once, as pages
    of the mounted files, and read-ahead is theirs alone. Before, it is kept twice."""
    if not data:
        _mount(str(meta), target, "")
        return
    try:
        _mount(str(meta), target, f"device={data},directio")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _mount(str(meta), target, f"device={data}")


def _mount(source: str, target: Path, options: str) -> None:
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        b"erofs",
        ctypes.c_ulong(_MS_RDONLY),
        os.fsencode(options) or None,
    )
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _mount_error(error: OSError, layer_dir: Path, target: Path) -> Exception:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFound(f"cannot mount {layer_dir} on {target}: {error.strerror}")
    if error.errno in (errno.EBADMSG, errno.EUCLEAN):
        return IntegrityError(f"the kernel refuses {layer_dir}: {error.strerror}")
    hint = ""
    if error.errno in (errno.ENODEV, errno.ENOTBLK):
        hint = "; EROFS support (CONFIG_EROFS_FS) and ext4, xfs or btrfs below are needed"
    return Unavailable(f"cannot mount {layer_dir} on {target}: {error.strerror}{hint}")


@contextlib.contextmanager
def _option_path(path: Path) -> Iterator[str]:
    """The path as a mount option can name it: commas cannot be escaped there."""
    if "," not in str(path):
        yield str(path)
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _loop_device(path: Path) -> Iterator[str]:
    """A read-only loop device over the file. It frees itself after its last user: the mount, or
    this context when nothing was mounted."""
    backing = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        device, name = _configure_loop(backing)
    except OSError as error:
        raise Unavailable(f"no loop device for {path}: {error.strerror}") from error
    finally:
        os.close(backing)
    try:
        yield name
    finally:
        os.close(device)


def _configure_loop(backing: int) -> tuple[int, str]:
    config = bytearray(_LOOP_CONFIG_BYTES)
    struct.pack_into("<I", config, 0, backing)
    struct.pack_into("<I", config, _LOOP_FLAGS_OFFSET, _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_LOOP_TRIES):
            name = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, bytes(config))
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # another process took it in between
                    raise
            else:
                return device, name
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, f"other processes took {_LOOP_TRIES} free devices in a row")
