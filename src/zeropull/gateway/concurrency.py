"""Exact concurrency: how many requests were in flight at every moment of every second.

A meter is told every change with its time, and closes a reading at each whole Unix second, however
late the event loop comes round to it: extremes and the integral are those of the second itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from zeropull.controlapi.messages import CopyReading

MAX_SAMPLES = 2000  # latencies kept per second; beyond it every request has the same chance
MIN_HALF_S = 0.33
MAX_GAP_S = 120  # a clock that jumps further is followed without a reading for each second


@dataclass(frozen=True, slots=True)
class MeterLabels:
    """Whose requests are counted; `copy_id` "" is a queue."""

    account: str
    endpoint: str
    variant: str
    copy_id: str = ""
    instance_id: str = ""
    component: str | None = None


@dataclass(slots=True)
class _Second:
    """What is counted between two whole seconds, but for the number in flight itself."""

    invocations: int = 0
    errors_4xx: int = 0
    errors_5xx: int = 0
    model_errors: int = 0
    no_capacity: int = 0
    age_max_s: float = 0.0
    model_us: list[int] = field(default_factory=list)
    overhead_us: list[int] = field(default_factory=list)


class ConcurrencyMeter:
    """Counts one copy's requests, or the ones that wait in one queue.

    Times never run backwards for it: an earlier `now_s` is taken as the newest one seen.
    `emit` gets each finished second, in order and without gaps.
    """

    __slots__ = (
        "_counted",
        "_emit",
        "_ends_s",
        "_integral",
        "_labels",
        "_last_s",
        "_max",
        "_min",
        "in_flight",
    )

    def __init__(
        self, labels: MeterLabels, now_s: float, emit: Callable[[CopyReading], None]
    ) -> None:
        self.in_flight = 0
        self._labels = labels
        self._emit = emit
        self._last_s = now_s
        self._ends_s = float(int(now_s) + 1)
        self._max = self._min = 0
        self._integral = 0.0
        self._counted = _Second()

    def begin(self, now_s: float) -> None:
        """One more request."""
        if now_s >= self._ends_s:
            self.roll(now_s)
        count = self.in_flight
        if now_s > self._last_s:
            self._integral += count * (now_s - self._last_s)
            self._last_s = now_s
        count += 1
        self.in_flight = count
        if count > self._max:
            self._max = count

    def end(self, now_s: float) -> None:
        """One request less, without a result (it left the queue, or was cancelled)."""
        if now_s >= self._ends_s:
            self.roll(now_s)
        count = self.in_flight
        if now_s > self._last_s:
            self._integral += count * (now_s - self._last_s)
            self._last_s = now_s
        count -= 1
        self.in_flight = count
        if count < self._min:
            self._min = count

    def finish(self, now_s: float, status: int, model_s: float, overhead_s: float) -> None:
        """One request less, answered by the model with `status` (0: not at all)."""
        self.end(now_s)
        counted = self._counted
        counted.invocations += 1
        if not 200 <= status < 300:
            counted.model_errors += 1
            if 400 <= status < 500:
                counted.errors_4xx += 1
            elif status >= 500:
                counted.errors_5xx += 1
        samples = counted.model_us
        if len(samples) < MAX_SAMPLES:
            samples.append(int(model_s * 1e6))
            counted.overhead_us.append(int(overhead_s * 1e6))
        else:
            place = int(random.random() * counted.invocations)  # noqa: S311 - a sample, no secret
            if place < MAX_SAMPLES:
                samples[place] = int(model_s * 1e6)
                counted.overhead_us[place] = int(overhead_s * 1e6)

    def refuse_no_capacity(self, now_s: float) -> None:
        """A request came while nothing could ever take it."""
        self.roll(now_s)
        self._counted.no_capacity += 1

    def note_age(self, now_s: float, age_s: float) -> None:
        """The oldest waiting request has waited this long."""
        self.roll(now_s)
        if age_s > self._counted.age_max_s:
            self._counted.age_max_s = age_s

    def roll(self, now_s: float) -> None:
        """Close every second that has ended by `now_s`."""
        if now_s - self._ends_s > MAX_GAP_S:
            self._close()
            self._last_s = float(int(now_s))
            self._ends_s = self._last_s + 1
        while now_s >= self._ends_s:
            self._close()

    def half(self, now_s: float) -> CopyReading | None:
        """The second in progress so far, its integral scaled to a whole second; None when nothing
        was in flight, or less than a third of the second has passed."""
        self.roll(now_s)
        began_s = self._ends_s - 1
        passed_s = now_s - began_s
        if self._max == 0 or passed_s < MIN_HALF_S:
            return None
        labels = self._labels
        integral = self._integral + self.in_flight * max(0.0, now_s - self._last_s)
        return CopyReading(
            account=labels.account,
            endpoint=labels.endpoint,
            variant=labels.variant,
            copy_id=labels.copy_id,
            instance_id=labels.instance_id,
            component=labels.component,
            second=int(began_s),
            in_flight_max=self._max,
            in_flight_min=self._min,
            in_flight_integral=integral / passed_s,
            queue_age_max_s=self._counted.age_max_s,
        )

    def _close(self) -> None:
        counted, labels, ends_s = self._counted, self._labels, self._ends_s
        self._integral += self.in_flight * max(0.0, ends_s - self._last_s)
        self._emit(
            CopyReading(
                account=labels.account,
                endpoint=labels.endpoint,
                variant=labels.variant,
                copy_id=labels.copy_id,
                instance_id=labels.instance_id,
                component=labels.component,
                second=int(ends_s) - 1,
                in_flight_max=self._max,
                in_flight_min=self._min,
                in_flight_integral=self._integral,
                invocations=counted.invocations,
                errors_4xx=counted.errors_4xx,
                errors_5xx=counted.errors_5xx,
                model_errors=counted.model_errors,
                no_capacity=counted.no_capacity,
                queue_age_max_s=counted.age_max_s,
                model_latency_us=tuple(counted.model_us),
                overhead_latency_us=tuple(counted.overhead_us),
            )
        )
        self._counted = _Second()
        self._max = self._min = self.in_flight
        self._integral = 0.0
        self._last_s = max(self._last_s, ends_s)
        self._ends_s = ends_s + 1
