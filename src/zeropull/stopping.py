"""Work in a thread that a cancelled caller can stop: the thread looks at an event as it goes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from zeropull.errors import Unavailable

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
