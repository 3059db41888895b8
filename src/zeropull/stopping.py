"""Work in a thread that a cancelled caller can stop: the thread looks at an event as it goes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from zeropull.errors import Unavailable

_COPIED_BYTES = 4 << 20  # between two looks at the event
_SYNCED_BYTES = 64 << 20  # so that no fsync at the end keeps a stop waiting for long
T = TypeVar("T")


async def run_stoppable(work: Callable[[threading.Event], T]) -> T:
    """Run `work` in a thread. Who is cancelled sets the event and waits for the thread's end, so
    that nothing is made any more once the cancellation is through."""
    stop = threading.Event()
    running = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # that it was stopped, most likely: nobody waits for it
        raise


def check_stop(stop: threading.Event | None) -> None:
    """Raises Unavailable once the event is set."""
    if stop is not None and stop.is_set():
        raise Unavailable("the work was stopped")


def copy_file(source: Path, target: Path, stop: threading.Event | None) -> None:
    """Copy to the new file `target` and sync it.

    Raises:
        Unavailable: it was stopped; part of the file is there.
    """
    with source.open("rb") as reader, target.open("xb") as writer:
        unsynced = 0
        while chunk := reader.read(_COPIED_BYTES):
            check_stop(stop)
            writer.write(chunk)
            unsynced += len(chunk)
            if unsynced >= _SYNCED_BYTES:
                writer.flush()
                os.fdatasync(writer.fileno())
                unsynced = 0
        writer.flush()
        os.fsync(writer.fileno())
