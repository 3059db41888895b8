"""The fast mode: two seconds to a decision, no second answer to one burst, no flapping."""

from __future__ import annotations

from zeropull.autoscaler.fast import FastPolicy, Fleet, decide_fast
from zeropull.autoscaler.loadwindow import LoadWindow
from zeropull.autoscaler.readings import Decision, Limits, NotScaled

POLICY = FastPolicy("f", target=4.0)
LIMITS = Limits(1, 20)


def window(*loads: float) -> LoadWindow:
    made = LoadWindow()
    for second, load in enumerate(loads):
        made.add(second, load)
    return made


def decide(loads: LoadWindow, fleet: Fleet, *, now_s: float = 0, age_s: float = 0) -> Decision:
    return decide_fast(POLICY, loads, queue_age_s=age_s, fleet=fleet, limits=LIMITS, now_s=now_s)


def test_a_step_of_load_is_answered_after_two_seconds() -> None:
    calm = [2.0] * 30
    assert decide(window(*calm, 12.0), Fleet(1)).not_scaled is not None
    decision = decide(window(*calm, 12.0, 12.0), Fleet(1))
    assert decision.desired >= 3
    assert "12.0 requests in flight for 2 s" in decision.reason


def test_what_is_starting_is_counted_so_one_burst_is_answered_once() -> None:
    loads = window(*[10.0] * 30)
    assert decide(loads, Fleet(1, startup_s=40)).desired == 3
    held = decide(loads, Fleet(1, starting_at_s=(50.0, 60.0)), now_s=30)
    assert held.not_scaled is NotScaled.STARTING
    assert "the next in 20 s" in held.reason


def test_a_request_that_waits_asks_for_one_more() -> None:
    assert decide(window(*[4.0] * 30), Fleet(1), age_s=3.0).desired == 2


def test_a_forecast_is_bounded() -> None:
    rising = [float(second) for second in range(30)]
    decision = decide(window(*rising), Fleet(1, startup_s=600))
    assert decision.desired == 9  # 1.25 × 28.5 / 4, and not 28.5 + 600


def test_scale_in_waits_for_fifteen_minutes_and_keeps_an_eighth_in_hand() -> None:
    assert decide(window(*[3.0] * 899), Fleet(3)).not_scaled is NotScaled.NO_DATA
    assert decide(window(*[3.0] * 900), Fleet(3)).desired == 1
    assert decide(window(*[3.7] * 900), Fleet(2)).not_scaled is NotScaled.WITHIN_TARGET


def test_a_steady_load_keeps_an_eighth_in_hand() -> None:
    assert decide(window(*[3.7] * 59), Fleet(1)).not_scaled is not None
    decision = decide(window(*[3.7] * 60), Fleet(1))
    assert decision.desired == 2
    assert "leave less than 12% of 1 × 4 free" in decision.reason


def test_what_the_reserve_asked_for_is_not_scaled_in_again() -> None:
    assert decide(window(*[3.7] * 1000), Fleet(2)).desired == 2


def test_a_single_second_of_noise_does_not_hold_back_scale_in() -> None:
    loads = [2.0] * 500 + [9.0] + [2.0] * 500
    assert decide(window(*loads), Fleet(3)).desired == 1


def test_the_maximum_is_named() -> None:
    decision = decide(window(*[200.0] * 30), Fleet(20))
    assert decision.not_scaled is NotScaled.AT_MAXIMUM


def test_a_slow_fall_needs_what_its_last_five_minutes_did() -> None:
    falling = [40 - 8 * second / 960 for second in range(960)]
    decision = decide(window(*falling), Fleet(12))
    assert decision.desired == 10
    assert "in 5 minutes need 10" in decision.reason
    assert decide(window(*falling), Fleet(11)).desired == 11  # AWS would not scale in either


def test_the_end_of_a_burst_is_no_slow_fall() -> None:
    burst = [40.0] * 300 + [20.0] * 300 + [19.9] * 300 + [19.8] * 60
    assert decide(window(*burst), Fleet(12)).desired == 12
    steady = [38.0, 38.5] * 480
    assert decide(window(*steady), Fleet(11)).not_scaled is NotScaled.WITHIN_TARGET
