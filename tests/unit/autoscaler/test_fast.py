"""The fast mode: two seconds to a decision, no second answer to one burst, no flapping."""

from __future__ import annotations

import math

from zeropull.autoscaler.combining import LastScaling
from zeropull.autoscaler.fast import FastPolicy, Fleet, decide_fast
from zeropull.autoscaler.load_window import LoadWindow
from zeropull.autoscaler.readings import Decision, Limits, NotScaled

POLICY = FastPolicy("f", target=4.0)
LIMITS = Limits(1, 20)
NEVER = LastScaling(out_at_s=-1000, in_at_s=-1000)


def window(*loads: float) -> LoadWindow:
    made = LoadWindow()
    for second, load in enumerate(loads):
        made.add(second, load)
    return made


def decide(
    loads: LoadWindow,
    fleet: Fleet,
    *,
    now_s: float = 0,
    age_s: float = 0,
    last: LastScaling = NEVER,
) -> Decision:
    return decide_fast(
        POLICY, loads, queue_age_s=age_s, fleet=fleet, limits=LIMITS, last=last, now_s=now_s
    )


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
    assert decision.desired == 11  # 1.5 × 28.5 / 4, and not 28.5 + 600


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


def test_the_minimum_is_named_only_where_fewer_would_do() -> None:
    decision = decide(window(*[0.0] * 900), Fleet(1))
    assert decision.not_scaled is NotScaled.AT_MINIMUM
    assert decision.reason.endswith("need 0, the minimum of 1 is reached")
    assert decide(window(*[0.0] * 899), Fleet(1)).not_scaled is NotScaled.NO_DATA
    assert decide(window(*[2.0] * 900), Fleet(1)).not_scaled is NotScaled.WITHIN_TARGET


def test_a_ramp_is_expected_to_last_as_long_again_as_it_has_lasted() -> None:
    calm = [8.0] * 300
    ramp = [8.0 + 0.2 * second for second in range(1, 21)]
    decision = decide(window(*calm, *ramp), Fleet(2, startup_s=60))
    assert "11.9 requests in flight for 2 s, 15.9 expected in 60 s" in decision.reason
    assert decision.desired == 4
    assert decide(window(*calm, *ramp), Fleet(2, startup_s=10)).desired == 4  # 13.9
    jump = [12.0] * 8
    assert decide(window(*calm, *jump), Fleet(2, startup_s=60)).desired == 3


def test_a_rise_of_a_load_that_always_rises_and_falls_is_not_continued() -> None:
    noise = [2.0] * 10 + [14.0] * 5
    ramp = [8.0 + 0.4 * second for second in range(1, 21)]
    decision = decide(window(*noise * 30, *ramp), Fleet(2, startup_s=60))
    assert "15.8 requests in flight for 2 s, 15.8 expected" in decision.reason


def test_what_was_started_too_many_stays_for_the_cooldown() -> None:
    out = LastScaling(out_at_s=100, out_from=2, out_to=9, out_cooldown_s=300)
    quiet = window(*[3.0] * 1000)
    held = decide(quiet, Fleet(9), now_s=150, last=out)
    assert (held.desired, held.not_scaled) == (9, NotScaled.COOLING_DOWN)
    assert "cooling down for 250 s more" in held.reason
    assert decide(quiet, Fleet(9), now_s=400, last=out).desired == 1
    went_in = LastScaling(in_at_s=100, in_cooldown_s=300)
    assert decide(quiet, Fleet(9), now_s=399, last=went_in).not_scaled is NotScaled.COOLING_DOWN
    assert decide(window(*[3.0] * 900, 50.0, 50.0), Fleet(9), now_s=150, last=went_in).desired > 9


def test_what_was_let_go_of_too_early_comes_back_whole() -> None:
    went_in = LastScaling(in_at_s=100, in_cooldown_s=300, in_from=6)
    busier = window(*[3.0] * 300, *[10.0] * 20)
    decision = decide(busier, Fleet(2), now_s=400, last=went_in)
    assert decision.desired == 6
    assert decision.reason.endswith("3 wanted, and there were 6 300 s ago: 6 wanted")
    assert decide(busier, Fleet(2), now_s=700, last=went_in).desired == 3
    assert decide(busier, Fleet(2, (700.0,) * 4), now_s=690, last=went_in).desired == 6


def test_when_more_can_go_within_a_minute_it_goes_in_one_step() -> None:
    """A burst that ends over half a minute leaves the 15 minutes over half a minute too."""
    end = [40.0 - second for second in range(30)]
    burst = [*[10.0] * 900, *[40.0] * 300, *end, *[10.0] * 850]
    steps = []
    loads = window(*burst)
    for second in range(len(burst), len(burst) + 200):
        loads.add(second, 10.0)
        decision = decide(loads, Fleet(11))
        if decision.desired != 11:
            steps.append(decision.desired)
            break
        assert decision.not_scaled in (NotScaled.WITHIN_TARGET, NotScaled.COOLING_DOWN)
    assert steps == [3]
    assert decision.reason == "at most 10.0 requests in flight in 15 minutes need 3"


def test_a_load_that_falls_all_the_time_is_followed_all_the_same() -> None:
    falling = [80 - 0.05 * second for second in range(1300)]
    assert decide(window(*falling), Fleet(20)).desired < 20


def test_one_and_two_instances_do_not_flap_on_a_load_between() -> None:
    loads, fleet, changes = LoadWindow(), Fleet(1), []
    last = NEVER
    for second in range(4 * 3600):
        loads.add(second, 3.2 + 0.9 * math.sin(second / 100))
        decision = decide(loads, fleet, now_s=second, last=last)
        if decision.desired != fleet.ready:
            changes.append(decision.desired)
            fleet = Fleet(decision.desired)
    assert changes == [2]


def test_a_slow_fall_needs_what_its_last_five_minutes_did() -> None:
    falling = [40 - 8 * second / 960 for second in range(960)]
    decision = decide(window(*falling), Fleet(12))
    assert decision.desired == 10
    assert "in 5 minutes need 10" in decision.reason
    assert decide(window(*falling), Fleet(11)).desired == 11  # AWS would not scale in either


def test_neither_the_end_of_a_burst_nor_noise_is_a_slow_fall() -> None:
    burst = [40.0] * 300 + [20.0] * 300 + [19.9] * 300 + [19.8] * 60
    assert decide(window(*burst), Fleet(12)).desired == 12
    drifting = [40 - 0.4 * second / 960 for second in range(960)]
    assert "in 15 minutes" in decide(window(*drifting), Fleet(12)).reason
    rough = [40 - 8 * second / 960 + (8 if second % 30 < 5 else 0) for second in range(960)]
    assert "in 15 minutes" in decide(window(*rough), Fleet(14)).reason
