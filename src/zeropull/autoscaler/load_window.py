"""The last minutes of a load, second by second, with the figures that the fast mode reads.

Everything is updated in constant amortised time, so that a day replays in seconds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

PEAK_S = 15 * 60
THIRD_S = PEAK_S // 3
SETTLE_S = 60
STEADY_S = 60
SPIKE_S = 5
RISE_STEP_S = 4
RISE_FRACTION = 0.02
"""How much higher than the one before a mean of four seconds is while a load rises."""
SLOW_FALL = (0.9, 0.98)
"""What a third of the 15 minutes keeps of the one before while a load goes down slowly: less is the
end of a burst, more is noise."""
SPANS_S = (THIRD_S, PEAK_S - SETTLE_S, PEAK_S, PEAK_S + SETTLE_S)


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


@dataclass(frozen=True, slots=True)
class Peaks:
    """The highest five-second mean and the highest one-minute mean of a span."""

    spike: float
    steady: float


class LoadWindow:
    """Takes one reading a second, in order; a gap counts as "the same as before"."""

    def __init__(self) -> None:
        self._minute: deque[tuple[int, float]] = deque()
        self._total = 0.0  # of the minute
        self._spikes = {span_s: SlidingMaximum(span_s) for span_s in SPANS_S}
        self._steady = {span_s: SlidingMaximum(span_s) for span_s in SPANS_S}
        self._thirds: deque[float] = deque(maxlen=2 * THIRD_S + 1)  # the highest minutes till then
        self._newest_means: deque[tuple[int, float, float]] = deque()  # five seconds', a minute's
        self._older_spike = SlidingMaximum(PEAK_S)  # of the 15 minutes before the last one
        self._older_steady = SlidingMaximum(PEAK_S)
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
        for spikes in self._spikes.values():
            spikes.add(second, spike)
        if self.covers(STEADY_S):
            for steady in self._steady.values():
                steady.add(second, self.steady())
            self._thirds.append(self._steady[THIRD_S].value())
            self._newest_means.append((second, spike, self.steady()))
        while self._newest_means and self._newest_means[0][0] <= second - STEADY_S:
            _, older_spike, older_steady = self._newest_means.popleft()
            self._older_spike.add(second, older_spike)
            self._older_steady.add(second, older_steady)

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

    def peaks(self, span_s: int = PEAK_S) -> Peaks:
        """Of one of SPANS_S; 0 without readings, and `steady` before the first whole minute."""
        return Peaks(self._spikes[span_s].value(), self._steady[span_s].value())

    def is_falling_slowly(self) -> bool:
        """Whether the highest minute of each third of the 15 minutes is a little lower than that of
        the third before."""
        if len(self._thirds) < 2 * THIRD_S + 1:
            return False
        least, most = SLOW_FALL
        first, second, third = self._thirds[0], self._thirds[THIRD_S], self._thirds[-1]
        return least * first <= second <= most * first and least * second <= third <= most * second

    def roughness(self) -> float:
        """How far the five-second peaks of a quarter of an hour stand above its minutes, as a
        ratio: 1.1 for a calm load, 1.3 for one that is noise at the scale of seconds.

        The last minute is left out: a burst that begins now is not noise yet. 0 without readings.
        """
        steady = self._older_steady.value()
        return self._older_spike.value() / steady if steady > 0 else 0.0

    def rise(self) -> tuple[float, int]:
        """(growth per second now, for how many seconds the load has been rising without a pause);
        (0, 0) when it does not rise."""
        values = self._newest(STEADY_S)
        means = [
            sum(values[at : at + RISE_STEP_S]) / RISE_STEP_S
            for at in range(0, len(values) - RISE_STEP_S + 1, RISE_STEP_S)
        ]
        steps = 0
        while steps + 1 < len(means) and means[steps] > (1 + RISE_FRACTION) * means[steps + 1]:
            steps += 1
        if not steps:
            return 0.0, 0
        return (means[0] - means[1]) / RISE_STEP_S, steps * RISE_STEP_S

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
