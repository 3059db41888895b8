"""The last minutes of a load, second by second, with the figures that the fast mode reads.

Everything is updated in constant amortised time, so that a day replays in seconds.
"""

from __future__ import annotations

from collections import deque

PEAK_S = 15 * 60
THIRD_S = PEAK_S // 3
STEADY_S = 60
SPIKE_S = 5
TREND_S = 20
SLOW_FALL = 0.9
"""What a third of the 15 minutes keeps of the one before while a load goes down slowly."""


class SlidingMaximum:
    """The largest of the values of the last `span_s` seconds."""

    def __init__(self, span_s: int) -> None:
        self._span_s = span_s
        self._falling: deque[tuple[int, float]] = deque()  # the head is the maximum

    def add(self, second: int, value: float) -> None:
        while self._falling and self._falling[-1][1] <= value:
            self._falling.pop()
        self._falling.append((second, value))
        while self._falling[0][0] <= second - self._span_s:
            self._falling.popleft()

    def value(self) -> float:
        """0 without values."""
        return self._falling[0][1] if self._falling else 0.0


class LoadWindow:
    """Takes one reading a second, in order; a gap counts as "the same as before"."""

    def __init__(self, *, peak_s: int = PEAK_S) -> None:
        self._minute: deque[tuple[int, float]] = deque()
        self._total = 0.0  # of the minute
        self._spikes = SlidingMaximum(peak_s)
        self._steady = SlidingMaximum(peak_s)
        self._third_spikes = SlidingMaximum(THIRD_S)
        self._third_steady = SlidingMaximum(THIRD_S)
        self._thirds: deque[float] = deque(maxlen=2 * THIRD_S + 1)  # the highest minutes till then
        self._first_s: int | None = None
        self._half: tuple[int, float] | None = None

    def add(self, second: int, load: float) -> None:
        """`load` is the mean number of requests in flight or waiting during that second."""
        if self._first_s is None:
            self._first_s = second
        self._half = None
        self._minute.append((second, load))
        self._total += load
        while self._minute[0][0] <= second - STEADY_S:
            self._total -= self._minute.popleft()[1]
        # A single second is noise for scale-in.
        spike = self.mean(SPIKE_S)
        self._spikes.add(second, spike)
        self._third_spikes.add(second, spike)
        if self.covers(STEADY_S):
            self._steady.add(second, self.steady())
            self._third_steady.add(second, self.steady())
            self._thirds.append(self._third_steady.value())

    def add_half(self, second: int, load: float) -> None:
        """The mean load of the first half of a `second` that has not ended: it counts as that
        second in `sustained` and in `mean` until the next reading comes."""
        if self._minute and second == self._minute[-1][0] + 1:
            self._half = (second, load)

    @property
    def ends_in_half(self) -> bool:
        return self._half is not None

    def sustained(self, seconds: int) -> float | None:
        """The lowest load of the last `seconds`: what was exceeded all the time. None = too new."""
        if len(self._minute) < seconds:
            return None
        return min(self._newest(seconds))

    def mean(self, seconds: int) -> float:
        """The mean of the last `seconds`, at most a minute; 0 without readings."""
        values = self._newest(seconds)
        return sum(values) / len(values) if values else 0.0

    def steady(self) -> float:
        """The mean of the last minute; 0 without readings."""
        return max(0.0, self._total) / len(self._minute) if self._minute else 0.0

    def slope_per_s(self) -> float:
        """Growth of the load over the last 20 s, from the means of both halves."""
        values = self._newest(TREND_S)
        if len(values) < TREND_S:
            return 0.0
        half = TREND_S // 2
        return (sum(values[:half]) - sum(values[half:])) / half / half

    def peak(self) -> float:
        """The highest five-second mean of the last 15 minutes; 0 without readings."""
        return self._spikes.value()

    def steady_peak(self) -> float:
        """The highest one-minute mean of the last 15 minutes; 0 before the first whole one."""
        return self._steady.value()

    def is_falling_slowly(self) -> bool:
        """Whether the highest minute of each third of the 15 minutes is a little lower than that of
        the third before. The end of a burst is no slow fall, and neither is noise, mostly."""
        if len(self._thirds) < 2 * THIRD_S + 1:
            return False
        first, second, third = self._thirds[0], self._thirds[THIRD_S], self._thirds[-1]
        return (
            first > second > third and second >= SLOW_FALL * first and third >= SLOW_FALL * second
        )

    def recent_peak(self) -> float:
        """As `peak`, of the last third alone."""
        return self._third_spikes.value()

    def recent_steady_peak(self) -> float:
        """As `steady_peak`, of the last third alone."""
        return self._third_steady.value()

    def covers(self, seconds: int) -> bool:
        """Whether readings go back that far, without which nothing is scaled in."""
        if self._first_s is None or not self._minute:
            return False
        return self._minute[-1][0] - self._first_s + 1 >= seconds

    def _newest(self, seconds: int) -> list[float]:
        """Newest first."""
        if not self._minute:
            return []
        newest, values = self._minute[-1][0], []
        if self._half is not None:
            newest = self._half[0]
            values.append(self._half[1])
        limit = newest - seconds
        for second, value in reversed(self._minute):
            if second <= limit:
                break
            values.append(value)
        return values
