"""The first rung: readers of an arriving layer wait in the kernel until their blocks are here.

What each reader waits for is written to a journal in shared memory before work for it begins. When
this process is killed, its successor gets the same group from the group's holder, and finishes what
the journal names: nobody who waits sees anything but the right bytes, or an error.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from zeropull.delivery.arriving import ArrivingLayer
from zeropull.delivery.filling import Filler
from zeropull.layers.layout import DATA_FILE
from zeropull.linux import precontent
from zeropull.telemetry import get_logger

MAX_WAITING = 65_536  # readers at once; the limit of descriptors is set to it
TAKE_OVER_S = 60.0
_SLOT = struct.Struct("=QQQ")  # inode (0: free), offset, count

log = get_logger(__name__)


class Gate:
    """Answers the readers of the layers that it watches. `start` once."""

    name = "fanotify"

    def __init__(self, group: int, journal: Path, filler: Filler) -> None:
        self._group = group
        self._filler = filler
        self._layers: dict[int, ArrivingLayer] = {}
        self._lock = threading.Lock()
        with journal.open("ab") as file:
            file.truncate(MAX_WAITING * _SLOT.size)
        descriptor = os.open(journal, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._journal = mmap.mmap(descriptor, MAX_WAITING * _SLOT.size)
        finally:
            os.close(descriptor)

    def watch(self, layer: ArrivingLayer) -> None:
        """Reads of its data wait from now on. Before anything is mounted on it. Raises OSError."""
        with self._lock:
            self._layers[layer.inode] = layer
        precontent.mark(self._group, layer.path / DATA_FILE)

    def release(self, layer: ArrivingLayer) -> None:
        """It is whole: reads go on by themselves."""
        precontent.unmark(self._group, layer.path / DATA_FILE)
        with self._lock:
            self._layers.pop(layer.inode, None)

    def start(self) -> None:
        """Finish what a killed predecessor left, then serve. All layers are watched by now."""
        self._take_over()
        threading.Thread(target=self._serve, name="gate", daemon=True).start()

    def _serve(self) -> None:
        own = os.getpid()
        while True:
            try:
                accesses = precontent.read_accesses(self._group)
            except OSError as error:
                if error.errno in (errno.EBADF, errno.EINVAL):
                    return
                log.error("events cannot be read", error=str(error))
                continue
            for access in accesses:
                layer = self._layer(os.fstat(access.number).st_ino)
                if layer is None or access.process == own:
                    # A layer that has become whole meanwhile, or our own look at it.
                    self._answer(access.number, is_here=True)
                    continue
                _SLOT.pack_into(
                    self._journal,
                    access.number * _SLOT.size,
                    layer.inode,
                    access.offset,
                    access.count,
                )
                self._need(layer, access.offset, access.count, self._answering(access.number))

    def _need(
        self, layer: ArrivingLayer, offset: int, count: int, done: Callable[[bool], None]
    ) -> None:
        size = layer.index.data.block_bytes
        end = min(offset + count, layer.index.data.size)
        self._filler.need(layer, offset // size, -(-end // size) - offset // size, done)

    def _answering(self, number: int) -> Callable[[bool], None]:
        return lambda is_here: self._answer(number, is_here=is_here)

    def _answer(self, number: int, *, is_here: bool) -> None:
        with contextlib.suppress(FileNotFoundError):  # the reader was killed
            precontent.answer(self._group, number, 0 if is_here else errno.EIO)
        _SLOT.pack_into(self._journal, number * _SLOT.size, 0, 0, 0)
        os.close(number)

    def _take_over(self) -> None:
        """Readers that a predecessor had taken up wait under its numbers. Until they have been
        answered no event is read, since ours would get the same numbers."""
        left = threading.Semaphore(0)
        waiting = 0
        for number in range(MAX_WAITING):
            inode, offset, count = _SLOT.unpack_from(self._journal, number * _SLOT.size)
            if not inode:
                continue
            layer = self._layer(inode)

            def done(is_here: bool, number: int = number) -> None:
                with contextlib.suppress(OSError):
                    precontent.answer(self._group, number, 0 if is_here else errno.EIO)
                _SLOT.pack_into(self._journal, number * _SLOT.size, 0, 0, 0)
                left.release()

            waiting += 1
            if layer is None:
                done(False)
            else:
                self._need(layer, offset, count, done)
        for _ in range(waiting):
            left.acquire(timeout=TAKE_OVER_S)
        # Events that it had read but not written down yet: these readers get an error, and the
        # kernel asks again for what was only read ahead.
        denied = 0
        for number in range(MAX_WAITING):
            with contextlib.suppress(OSError):
                precontent.answer(self._group, number, errno.EIO)
                denied += 1
        if waiting or denied:
            log.info("readers of a killed process answered", served=waiting, denied=denied)

    def _layer(self, inode: int) -> ArrivingLayer | None:
        with self._lock:
            return self._layers.get(inode)
