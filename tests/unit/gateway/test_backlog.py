"""Readings that wait for the control plane stay in order, and in bounded memory."""

from __future__ import annotations

from zeropull.controlapi.messages import CopyReading
from zeropull.gateway import backlog
from zeropull.gateway.backlog import ReadingsBacklog


def reading(second: int, latencies: int = 0) -> CopyReading:
    return CopyReading(
        *("1", "e", "v", "c", "i", None),
        second=second,
        in_flight_max=3,
        in_flight_min=1,
        in_flight_integral=2.0,
        invocations=latencies,
        model_latency_us=tuple(range(latencies)),
        overhead_latency_us=tuple(range(latencies)),
    )


def test_what_could_not_be_delivered_comes_first_again() -> None:
    kept = ReadingsBacklog()
    for second in range(5):
        kept.add(reading(second, 10))
    taken = kept.take(2)
    assert [r.second for r in taken] == [0, 1]
    kept.give_back(taken)
    assert kept.take(100) == [reading(second, 10) for second in range(5)]
    assert kept.take(100) == []


def test_the_oldest_go_when_there_are_too_many() -> None:
    kept = ReadingsBacklog()
    for second in range(backlog.MAX_READINGS + 3):
        kept.add(reading(second))
    assert len(kept) == backlog.MAX_READINGS
    taken = kept.take(2)
    assert [r.second for r in taken] == [3, 4]
    kept.add(reading(-1))
    kept.give_back(taken)  # there is room for the newer of both
    assert len(kept) == backlog.MAX_READINGS
    assert kept.take(1)[0].second == 4


def test_an_hour_of_load_without_a_control_plane_keep_their_counts_and_few_latencies() -> None:
    kept = ReadingsBacklog()
    hour_s = 3600
    for second in range(hour_s):
        kept.add(reading(second, 2000))
    taken = kept.take(hour_s)
    assert [r.second for r in taken] == list(range(hour_s))
    assert {r.invocations for r in taken} == {2000}
    latencies = [len(r.model_latency_us) for r in taken]
    assert latencies[:100] == [2000] * 100
    assert set(latencies[100:]) == {backlog.FEW}
    assert taken[-1].model_latency_us == tuple(range(0, 2000, 100))
    kept.add(reading(hour_s, 2000))  # delivered: the next one is kept whole
    assert len(kept.take(1)[0].model_latency_us) == 2000
