"""Work of a node that can wait, such as verifying blocks: after launches, and at low priority.

A launch needs the processor for its model's download and the disk for its container's start. What
runs beside it takes from both, and nobody waits for that.
"""

from __future__ import annotations

import threading
import time


class LaunchesUnderWay:
    """The copies of a node that are on their way to serve. `note` is for the event loop, the wait
    of a `QuietWait` for threads."""

    def __init__(self) -> None:
        self._copies: set[str] = set()
        self._none = threading.Event()
        self._none.set()

    def note(self, copy_id: str, *, is_launching: bool) -> None:
        if is_launching:
            self._copies.add(copy_id)
            self._none.clear()
        else:
            self._copies.discard(copy_id)
            if not self._copies:
                self._none.set()

    @property
    def are_under_way(self) -> bool:
        return bool(self._copies)

    def quiet_wait(self, limit_s: float) -> QuietWait:
        return QuietWait(self._none, limit_s)


class QuietWait:
    """Waits until nothing is launched, all waits together for so many seconds."""

    def __init__(self, nothing: threading.Event, limit_s: float) -> None:
        self._nothing = nothing
        self._left_s = limit_s

    def wait(self, stop: threading.Event | None = None) -> None:
        """Blocks, for a thread; until `stop` is set, too."""
        began_s = time.monotonic()
        while not self._nothing.wait(min(0.5, max(0.0, self._left_s))):
            self._left_s -= time.monotonic() - began_s
            began_s = time.monotonic()
            if self._left_s <= 0 or (stop is not None and stop.is_set()):
                return
