"""Readings that the control plane has not got yet, in bounded memory however long it is away."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from zeropull.controlapi.messages import CopyReading

MAX_READINGS = 100_000  # the oldest go first
MAX_LATENCIES = 400_000  # kept in full (some 16 MB); beyond it a reading keeps a few of its own
FEW = 20


class ReadingsBacklog:
    """A queue of readings, oldest first.

    Counts and extremes are never thinned, only the sample of latencies is.
    """

    def __init__(self) -> None:
        self._readings: deque[CopyReading] = deque()
        self._latencies = 0

    def __len__(self) -> int:
        return len(self._readings)

    def add(self, reading: CopyReading) -> None:
        if self._latencies + _latencies(reading) > MAX_LATENCIES:
            reading = _thinned(reading)
        if len(self._readings) >= MAX_READINGS:
            self._latencies -= _latencies(self._readings.popleft())
        self._readings.append(reading)
        self._latencies += _latencies(reading)

    def take(self, count: int) -> list[CopyReading]:
        """The oldest `count`, or all that there are."""
        taken = [self._readings.popleft() for _ in range(min(count, len(self._readings)))]
        self._latencies -= sum(map(_latencies, taken))
        return taken

    def give_back(self, readings: list[CopyReading]) -> None:
        """They were taken and could not be delivered; they come first again."""
        room = MAX_READINGS - len(self._readings)
        kept = readings[-room:] if room else []
        self._readings.extendleft(reversed(kept))
        self._latencies += sum(map(_latencies, kept))


def _latencies(reading: CopyReading) -> int:
    return len(reading.model_latency_us) + len(reading.overhead_latency_us)


def _thinned(reading: CopyReading) -> CopyReading:
    # The k-th of each belong to the same request, and come in the order of their answers.
    step = max(1, -(-len(reading.model_latency_us) // FEW))
    return replace(
        reading,
        model_latency_us=reading.model_latency_us[::step],
        overhead_latency_us=reading.overhead_latency_us[::step],
    )
