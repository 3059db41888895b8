"""The second rung, for kernels without pre-content events: data files that FUSE serves.

EROFS reads the data of an arriving layer from a file of a FUSE mount. A read waits until the blocks
below it are here; what is here is read from the layer's own file. When the receiver dies, the
kernel ends the connection, and readers get an error: never zeros. A layer that is whole is mounted
from its own file the next time.

The library is mfusepy over the system's libfuse (https://github.com/mxmlnkn/mfusepy).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

from zeropull.delivery.arriving import OWN_FILE, ArrivingLayer
from zeropull.delivery.filling import Filler
from zeropull.errors import Unavailable
from zeropull.layers.layout import DATA_FILE
from zeropull.linux.mounts import unmount
from zeropull.telemetry import get_logger

START_TIMEOUT_S = 10.0

log = get_logger(__name__)


def is_supported() -> bool:
    """Whether this machine has FUSE and its library."""
    if not Path("/dev/fuse").exists():
        return False
    try:
        import mfusepy  # noqa: F401 # it loads the system's library
    except (ImportError, OSError):
        return False
    return True


class FuseFiles:
    """The layers' data as files of a mount at `folder`. `start` before anything is watched."""

    name = "fuse"

    def __init__(self, folder: Path, filler: Filler) -> None:
        self._folder = folder
        self._filler = filler
        self._layers: dict[str, ArrivingLayer] = {}

    def start(self) -> None:
        """Mount; returns once files can be read.

        Raises:
            Unavailable: FUSE does not mount here.
        """
        with contextlib.suppress(OSError):  # of a receiver that was killed
            unmount(self._folder, lazy=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        threading.Thread(target=self._serve, name="fuse", daemon=True).start()
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not os.path.ismount(self._folder):  # pathlib asks for more
            if time.monotonic() > deadline_s:
                raise Unavailable(f"FUSE does not mount {self._folder}")
            time.sleep(0.01)

    def watch(self, layer: ArrivingLayer) -> None:
        """Whoever opens the layer's data from now on gets the file of the mount."""
        self._layers[layer.path.name] = layer
        own, data = layer.path / OWN_FILE, layer.path / DATA_FILE
        if not own.exists():
            os.link(data, own)
        link = data.with_name(f".{DATA_FILE}.new")
        link.unlink(missing_ok=True)
        link.symlink_to(self._folder / layer.path.name)
        link.replace(data)

    def release(self, layer: ArrivingLayer) -> None:
        """Whoever opens it from now on gets its own file; who has it open goes on through FUSE."""
        own = layer.path / OWN_FILE
        if own.exists():
            own.replace(layer.path / DATA_FILE)

    def _serve(self) -> None:
        from mfusepy import FUSE  # see `is_supported`

        try:
            FUSE(
                _Operations(self._layers, self._filler),
                str(self._folder),
                foreground=True,
                nothreads=False,
                fsname="zeropull",
                ro=True,
                allow_other=False,
                attr_timeout=3600,
                entry_timeout=0,
            )
        except (RuntimeError, OSError) as error:
            log.error("FUSE ended", error=str(error))


class _Operations:
    """What libfuse asks; errors are `OSError` with an errno."""

    use_ns = True

    def __init__(self, layers: dict[str, ArrivingLayer], filler: Filler) -> None:
        self._layers = layers
        self._filler = filler

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o500, "st_nlink": 2}
        size = self._layer(path).index.data.size
        return {"st_mode": stat.S_IFREG | 0o400, "st_nlink": 1, "st_size": size}

    def open(self, path: str, flags: int) -> int:
        self._layer(path)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        layer = self._layer(path)
        end = min(offset + size, layer.index.data.size)
        if end <= offset:
            return b""
        block = layer.index.data.block_bytes
        first, count = offset // block, -(-end // block) - offset // block
        if not layer.has(first, count) and not _wait(self._filler, layer, first, count):
            raise OSError(errno.EIO, "the data did not come")
        return layer.read_bytes(offset, end - offset)

    def _layer(self, path: str) -> ArrivingLayer:
        layer = self._layers.get(path.lstrip("/"))
        if layer is None:
            raise OSError(errno.ENOENT, path)
        return layer


def _wait(filler: Filler, layer: ArrivingLayer, first: int, count: int) -> bool:
    here: list[bool] = []
    over = threading.Event()

    def done(is_here: bool) -> None:
        here.append(is_here)
        over.set()

    filler.need(layer, first, count, done)
    over.wait()
    return here[0]
