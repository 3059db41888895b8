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
from collections.abc import Callable, Collection
from pathlib import Path

from zeropull.delivery.arriving import ArrivingLayer
from zeropull.delivery.filling import Filler
from zeropull.layers.layout import DATA_FILE
from zeropull.linux import precontent
from zeropull.telemetry import get_logger

MAX_WAITING = 65_536  # readers at once; the limit of descriptors is set to it
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
        """Serve from now on, those first that a killed predecessor left. All layers are watched by
        now, and `reserve_numbers` was called before anything else."""
        waiting = self._waiting()
        self._deny_all_but(waiting)
        threading.Thread(target=self._serve, name="gate", daemon=True).start()
        for number, (inode, offset, count) in waiting.items():
            layer = self._layer(inode)
            if layer is None:
                self._answer(number, is_here=False)
            else:
                self._need(layer, offset, count, self._answering(number))
        if waiting:
            log.info("readers of a killed process are served", readers=len(waiting))

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

    def _waiting(self) -> dict[int, tuple[int, int, int]]:
        """Inode, offset and count by number, of readers that a predecessor had taken up."""
        return _waiting_in(memoryview(self._journal))

    def _deny_all_but(self, waiting: Collection[int]) -> None:
        """A predecessor may have read events that it had not written down yet. These readers get
        an error, and the kernel asks again for what was only read ahead."""
        for number in range(MAX_WAITING):
            if number not in waiting:
                with contextlib.suppress(OSError):
                    precontent.answer(self._group, number, errno.EIO)

    def _layer(self, inode: int) -> ArrivingLayer | None:
        with self._lock:
            return self._layers.get(inode)


def reserve_numbers(journal: Path) -> None:
    """Occupy, in this process, the numbers under which readers of a predecessor still wait: a new
    event must not get one of them. Before this process opens anything else."""
    try:
        waiting = _waiting_in(memoryview(journal.read_bytes()))
    except FileNotFoundError:
        return
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for number in waiting:
        if number != null:
            os.dup2(null, number, inheritable=False)
    if null not in waiting:
        os.close(null)


def _waiting_in(journal: memoryview) -> dict[int, tuple[int, int, int]]:
    slots = enumerate(_SLOT.iter_unpack(journal[: len(journal) // _SLOT.size * _SLOT.size]))
    return {number: slot for number, slot in slots if slot[0]}
