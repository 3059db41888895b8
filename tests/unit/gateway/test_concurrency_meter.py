"""The meter against a plain recomputation from the list of all changes."""

from __future__ import annotations

import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from zeropull.controlapi.messages import CopyReading
from zeropull.gateway.concurrency import MAX_SAMPLES, ConcurrencyMeter, MeterLabels

LABELS = MeterLabels("1", "e", "v", "c", "i")
START_S = 1000.25


def meter() -> tuple[ConcurrencyMeter, list[CopyReading]]:
    readings: list[CopyReading] = []
    return ConcurrencyMeter(LABELS, START_S, readings.append), readings


@given(
    st.lists(st.tuples(st.integers(0, 1700).map(lambda ms: ms / 1000), st.booleans()), max_size=60)
)
@example([(0.142, False), (0.219, False), (0.539, False), (0.617, False), (1.233, False)])
def test_every_second_has_the_exact_extremes_and_integral(
    steps: list[tuple[float, bool]],
) -> None:
    counted, readings = meter()
    now_s, level = START_S, 0
    changes = [(now_s, 0)]
    for gap_s, up in steps:
        now_s += gap_s
        if up or level == 0:
            counted.begin(now_s)
            level += 1
        else:
            counted.end(now_s)
            level -= 1
        changes.append((now_s, level))
    end_s = float(int(now_s) + 2)
    counted.roll(end_s)
    assert [r.second for r in readings] == list(range(int(START_S), int(end_s)))
    spans = [*changes, (end_s, level)]
    for reading in readings:
        begins_s, ends_s = float(reading.second), float(reading.second + 1)
        integral, levels = 0.0, []
        for (at_s, value), (until_s, _) in itertools.pairwise(spans):
            overlap_s = min(until_s, ends_s) - max(at_s, begins_s)
            if overlap_s > 0:
                integral += value * overlap_s
            # A second begins with the level that it is handed, also when that changes at once.
            if at_s < ends_s and until_s >= begins_s:
                levels.append(value)
        assert abs(reading.in_flight_integral - integral) < 1e-6
        assert reading.in_flight_max == max(levels)
        assert reading.in_flight_min == min(levels)


def test_results_are_counted_by_their_kind() -> None:
    counted, readings = meter()
    for status in (200, 404, 500, 0):
        counted.begin(START_S)
        counted.finish(START_S, status, 0.25, 0.001)
    counted.roll(START_S + 1)
    (reading,) = readings
    assert (reading.invocations, reading.errors_4xx, reading.errors_5xx) == (4, 1, 1)
    assert reading.model_errors == 3
    assert reading.model_latency_us == (250_000,) * 4
    assert reading.overhead_latency_us == (1000,) * 4


def test_latency_samples_are_bounded() -> None:
    counted, readings = meter()
    for _ in range(MAX_SAMPLES + 500):
        counted.begin(START_S)
        counted.finish(START_S, 200, 0.1, 0.1)
    counted.roll(START_S + 1)
    assert readings[0].invocations == MAX_SAMPLES + 500
    assert len(readings[0].model_latency_us) == MAX_SAMPLES


def test_a_clock_that_steps_back_does_not_harm() -> None:
    counted, readings = meter()
    counted.begin(START_S + 0.5)
    counted.end(START_S - 3)
    counted.roll(START_S + 1)
    assert readings[0].in_flight_integral == 0.0


def test_a_clock_that_jumps_a_day_does_not_give_a_day_of_readings() -> None:
    counted, readings = meter()
    counted.roll(START_S + 86_400)
    assert len(readings) < 5


def test_half_a_second_is_scaled_to_a_whole_one_and_changes_nothing() -> None:
    counted, readings = meter()
    counted.begin(1001.0)
    counted.begin(1001.25)
    half = counted.half(1001.5)
    assert half is not None
    assert (half.second, half.in_flight_max) == (1001, 2)
    assert half.in_flight_integral == (0.25 * 1 + 0.25 * 2) / 0.5
    counted.roll(1002.0)
    assert readings[-1].in_flight_integral == 0.25 * 1 + 0.75 * 2


def test_there_is_no_half_of_a_second_without_requests_or_that_has_hardly_begun() -> None:
    counted, _ = meter()
    assert counted.half(1001.5) is None
    counted.begin(1001.6)
    assert counted.half(1002.01) is None
