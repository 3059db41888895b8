"""Readings that no control plane has taken: kept in order, within bounds, exact in their counts."""

from __future__ import annotations

from zeropull.controlapi.messages import CopyReading
from zeropull.gateway.gateway import (
    MAX_READINGS,
    REPORTED_READINGS,
    THINNED_SAMPLES,
    WHOLE_READINGS,
    Gateway,
)
from zeropull.resources.settings import GatewaySettings

SAMPLES = tuple(range(2000))


def reading(second: int, samples: tuple[int, ...] = SAMPLES) -> CopyReading:
    return CopyReading(
        "000000000000", "e", "v", "c", "i", None, second, 3, 1, 2.0,
        invocations=5000, model_latency_us=samples, overhead_latency_us=samples,
    )  # fmt: skip


def gateway_with(count: int, samples: tuple[int, ...] = ()) -> Gateway:
    gateway = Gateway(GatewaySettings(), host="127.0.0.1", port=0, api_socket="")
    gateway.readings.extend(reading(second, samples) for second in range(count))
    return gateway


def test_what_was_given_back_is_taken_again_in_order() -> None:
    gateway = gateway_with(5)
    taken = gateway.take_readings()
    gateway.readings.append(reading(5, ()))
    gateway.give_back_readings(taken)
    assert [each.second for each in gateway.take_readings()] == [0, 1, 2, 3, 4, 5]


def test_only_the_newest_keep_all_of_their_latencies() -> None:
    gateway = gateway_with(WHOLE_READINGS + 50, SAMPLES)
    gateway.give_back_readings(gateway.take_readings())
    kept = list(gateway.readings)
    assert all(each.model_latency_us == SAMPLES for each in kept[50:])
    for each in kept[:50]:
        assert 0 < len(each.model_latency_us) <= THINNED_SAMPLES
        assert len(each.overhead_latency_us) == len(each.model_latency_us)
        assert (each.invocations, each.in_flight_max) == (5000, 3)


def test_a_report_has_a_bounded_part_of_what_was_kept() -> None:
    gateway = gateway_with(REPORTED_READINGS + 1)
    assert len(gateway.take_readings()) == REPORTED_READINGS
    assert [each.second for each in gateway.take_readings()] == [REPORTED_READINGS]


def test_the_oldest_go_when_there_is_no_room() -> None:
    gateway = gateway_with(2)
    taken = gateway.take_readings()
    gateway.readings.extend(reading(second, ()) for second in range(2, MAX_READINGS + 1))
    gateway.give_back_readings(taken)
    assert len(gateway.readings) == MAX_READINGS
    assert gateway.readings[0].second == 1
