"""The last minutes of a load, second by second, with the figures that the fast mode reads.

Everything is updated in constant amortised time, so that a day replays in seconds.
"""

from __future__ import annotations

from collections import deque

PEAK_S = 15 * 60
TREND_S = 20


class LoadWindow:
    """Takes one reading a second, in order; a gap counts as "the same as before"."""

    def __init__(self, *, peak_s: int = PEAK_S) -> None:
        self._peak_s = peak_s
        self._recent: deque[tuple[int, float]] = deque(maxlen=TREND_S)
        self._peaks: deque[tuple[int, float]] = deque()  # falling values: the head is the peak
        self._first_s: int | None = None

    def add(self, second: int, load: float) -> None:
        """`load` is the mean number of requests in flight or waiting during that second."""
        if self._first_s is None:
            self._first_s = second
        self._recent.append((second, load))
        # A single second's spike is noise for scale-in: the peak is that of five-second means.
        tail = [value for at, value in self._recent if at > second - 5]
        smooth = sum(tail) / len(tail)
        while self._peaks and self._peaks[-1][1] <= smooth:
            self._peaks.pop()
        self._peaks.append((second, smooth))
        while self._peaks[0][0] <= second - self._peak_s:
            self._peaks.popleft()

    def sustained(self, seconds: int) -> float | None:
        """The lowest load of the last `seconds`: what was exceeded all the time. None = too new."""
        if len(self._recent) < seconds:
            return None
        newest = self._recent[-1][0]
        return min(value for at, value in self._recent if at > newest - seconds)

    def mean(self, seconds: int) -> float:
        """The mean of the last `seconds`; 0 without readings."""
        if not self._recent:
            return 0.0
        newest = self._recent[-1][0]
        values = [value for at, value in self._recent if at > newest - seconds]
        return sum(values) / len(values)

    def slope_per_s(self) -> float:
        """Growth of the load over the last 20 s, from the means of both halves."""
        if len(self._recent) < TREND_S:
            return 0.0
        values = [value for _, value in self._recent]
        half = TREND_S // 2
        return (sum(values[half:]) - sum(values[:half])) / half / half

    def peak(self) -> float:
        """The highest five-second mean of the last 15 minutes; 0 without readings."""
        return self._peaks[0][1] if self._peaks else 0.0

    def covers(self, seconds: int) -> bool:
        """Whether readings go back that far, without which nothing is scaled in."""
        if self._first_s is None or not self._recent:
            return False
        return self._recent[-1][0] - self._first_s + 1 >= seconds
