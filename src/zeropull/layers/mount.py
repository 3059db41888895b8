"""Mount layers with mount(2): file-backed from Linux 6.12, through loop devices before that.

util-linux's mount would silently take a loop device (Linux Documentation/filesystems/erofs.rst).
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from zeropull.erofs.reader import image_sizes
from zeropull.errors import IntegrityError, NotFound, Unavailable
from zeropull.layers.layout import DATA_FILE, META_FILE
from zeropull.linux import mounts
from zeropull.linux.loop_devices import read_only_loop_device


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
        device = stack.enter_context(read_only_loop_device(meta))
        options = f"device={stack.enter_context(read_only_loop_device(data))}" if has_data else ""
        try:
            _mount(device, target, options)
        except OSError as error:
            raise _mount_error(error, layer_dir, target) from error


def unmount(target: Path, *, lazy: bool = False) -> bool:
    """Unmount; False when nothing was mounted there. `lazy` detaches a mount that is in use.

    Raises:
        Unavailable: it is busy.
    """
    try:
        return mounts.unmount(target, lazy=lazy)
    except OSError as error:
        raise Unavailable(f"cannot unmount {target}: {error.strerror}") from error


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
    mounts.mount(source, target, "erofs", flags=mounts.MS_RDONLY, options=options)


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
