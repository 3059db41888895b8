"""Recent points in memory, for alarms that look at the last quarter hour every ten seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zeropull.metricstore.points import Point

SHORT_PERIODS_S = (10, 20, 30)
MAX_WINDOWS = 2000
MAX_SPAN_S = 3600
"""Longer ranges are read from the disk: nobody asks for them every ten seconds."""

Read = Callable[[int, int], dict[int, Point]]
"""Points from `low` up to `high`, by period start."""


@dataclass(slots=True)
class _Window:
    """Points of one series from `low` to `final`, to which nothing is added any more.

    `fresh`, up to `fresh_high`, are those after it; None when some came since.
    """

    low: int
    final: int
    span_s: int
    points: dict[int, Point]
    fresh: dict[int, Point] | None = None
    fresh_high: int = 0


class RecentWindows:
    """By series and period. One thread at a time."""

    def __init__(self) -> None:
        self._windows: dict[tuple[int, int], _Window] = {}

    def clear(self) -> None:
        self._windows.clear()

    def note_point(self, series: int, start: int) -> None:
        """A point by the second has been added."""
        for period_s in SHORT_PERIODS_S:
            window = self._windows.get((series, period_s))
            if window is None:
                continue
            window.fresh = None
            if start < window.final:
                del self._windows[series, period_s]  # late: it has been read already

    def points(
        self, series: int, period_s: int, low: int, high: int, read: Read
    ) -> dict[int, Point]:
        """As `read(low, high)`: only what came since the last time is read."""
        window = self._windows.get((series, period_s))
        if window is None or low < window.low or high < window.final:
            window = _Window(low, low, 0, {})
            if len(self._windows) >= MAX_WINDOWS:
                self._windows.clear()
            self._windows[series, period_s] = window
        fresh = window.fresh
        if fresh is None or window.fresh_high != high:
            fresh = read(window.final, high)
            window.fresh, window.fresh_high = fresh, high
        window.points |= fresh
        # Kept is what the reader that looks furthest back needs; a metric has two alarms.
        window.span_s = max(window.span_s, high - low)
        window.low = max(window.low, high - window.span_s)
        found = {start: point for start, point in window.points.items() if start >= low}
        # The newest two periods may still be added to.
        window.final = max(window.final, max(fresh, default=0) - period_s)
        window.points = {
            start: point
            for start, point in window.points.items()
            if window.low <= start < window.final
        }
        return found
