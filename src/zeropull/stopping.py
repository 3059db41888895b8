"""Work in a thread whose caller may be cancelled: the caller always waits for the thread to end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from zeropull.errors import Unavailable
from zeropull.telemetry import get_logger

P = ParamSpec("P")
T = TypeVar("T")

log = get_logger(__name__)


async def run_stoppable(work: Callable[[threading.Event], T]) -> T:
    """Run `work` in a thread. On cancellation, set `stop` and wait for the thread to end: after
    that, it makes nothing more."""
    stop = threading.Event()
    return await _to_end(asyncio.ensure_future(asyncio.to_thread(work, stop)), stop)


async def run_to_end(work: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
    """Run `work` in a thread. A cancelled caller waits for its end, too: nobody else may touch what
    it is making until then."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *arguments, **keywords))
    return await _to_end(running, threading.Event())


def check_stop(stop: threading.Event | None) -> None:
    """Raises Unavailable once the event is set."""
    if stop is not None and stop.is_set():
        raise Unavailable("the work was stopped")


async def _to_end(running: asyncio.Future[T], stop: threading.Event) -> T:
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        error = None if running.cancelled() else running.exception()
        if error is not None and not isinstance(error, Unavailable):  # that it was stopped
            log.warning("cancelled work failed", error=str(error))
        raise
