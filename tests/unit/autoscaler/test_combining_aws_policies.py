"""Target tracking, step scaling and what several policies and cooldowns make of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from zeropull.autoscaler.alarms import AlarmState
from zeropull.autoscaler.combining import LastScaling, combine
from zeropull.autoscaler.readings import Decision, Limits, NotScaled
from zeropull.autoscaler.step_scaling import (
    AdjustmentType,
    Step,
    StepScaling,
    check_steps,
    propose_step,
)
from zeropull.autoscaler.target_tracking import TargetTracking, high_alarm, low_alarm, propose
from zeropull.errors import InvalidInput

POLICY = TargetTracking("p", target=5.0, period_s=10)
LIMITS = Limits(minimum=1, maximum=10)


def test_managed_alarms_are_those_of_the_high_resolution_metric() -> None:
    high, low = high_alarm(POLICY), low_alarm(POLICY)
    assert (high.evaluation_periods * high.period_s, high.threshold) == (30, 5.0)
    assert (low.evaluation_periods, low.period_s, low.threshold) == (90, 10, 4.5)


def test_scale_out_is_proportional_to_the_metric() -> None:
    decision = propose(POLICY, high=AlarmState.ALARM, low=AlarmState.OK, metric=18.0, capacity=2)
    assert decision.desired == 8


def test_a_step_is_not_rounded_up_for_the_last_binary_digit() -> None:
    policy = replace(POLICY, target=0.3)
    high = propose(policy, high=AlarmState.ALARM, low=AlarmState.OK, metric=2.1, capacity=1)
    assert high.desired == 7  # 2.1 / 0.3 is 7.000000000000001


def test_scale_in_that_would_flap_is_refused() -> None:
    decision = propose(POLICY, high=AlarmState.OK, low=AlarmState.ALARM, metric=4.4, capacity=2)
    assert decision.not_scaled is NotScaled.ANTICIPATED_FLAPPING
    assert (
        propose(POLICY, high=AlarmState.OK, low=AlarmState.ALARM, metric=2.4, capacity=2).desired
        == 1
    )


def test_missing_data_never_scales_in() -> None:
    decision = propose(
        POLICY, high=AlarmState.OK, low=AlarmState.INSUFFICIENT_DATA, metric=0.0, capacity=4
    )
    assert decision.not_scaled is NotScaled.NO_DATA


def test_any_policy_scales_out_and_all_must_agree_to_scale_in() -> None:
    out, small_in, stay = (
        Decision(4, "a", "a"),
        Decision(1, "b", "b"),
        Decision(2, "c", "c", NotScaled.WITHIN_TARGET),
    )
    last = LastScaling()
    at: dict[str, Any] = {"capacity": 2, "limits": LIMITS, "last": last, "now_s": 1000.0}
    assert combine([out, small_in], **at).desired == 4
    assert combine([small_in, stay], **at).desired == 2
    assert combine([small_in], **at).desired == 1
    off = Decision(2, "d", "d", NotScaled.SUSPENDED)
    assert combine([small_in, off], **at).desired == 1


def test_only_a_larger_scale_out_passes_during_its_cooldown() -> None:
    last = LastScaling(out_at_s=900, out_from=1, out_to=3, out_cooldown_s=300)
    at: dict[str, Any] = {"capacity": 2, "limits": LIMITS, "last": last, "now_s": 1000.0}
    held = combine([Decision(3, "x", "p")], **at)
    assert held.not_scaled is NotScaled.COOLING_DOWN
    assert "200 s more" in held.reason
    assert combine([Decision(4, "x", "p")], **at).desired == 4


def test_a_policy_that_may_not_scale_in_does_not_keep_another_from_it() -> None:
    policy = replace(POLICY, scale_in_disabled=True)
    calm = propose(policy, high=AlarmState.OK, low=AlarmState.OK, metric=0.0, capacity=2)
    at: dict[str, Any] = {"capacity": 2, "limits": LIMITS, "last": LastScaling(), "now_s": 1000.0}
    assert combine([calm, Decision(1, "step", "s")], **at).desired == 1
    assert combine([calm], **at).desired == 2
    busy = propose(policy, high=AlarmState.ALARM, low=AlarmState.OK, metric=15.0, capacity=2)
    assert combine([busy, Decision(1, "step", "s")], **at).desired == 6


def test_a_scale_out_during_the_scale_in_cooldown_acts_at_once() -> None:
    last = LastScaling(in_at_s=990, in_cooldown_s=300)
    at: dict[str, Any] = {"capacity": 2, "limits": LIMITS, "last": last, "now_s": 1000.0}
    assert combine([Decision(3, "x", "p")], **at).desired == 3
    assert combine([Decision(1, "x", "p")], **at).not_scaled is NotScaled.COOLING_DOWN


def test_what_a_scale_in_took_is_remembered_for_ten_minutes() -> None:
    last = LastScaling().after_in(1000, 8, 300)
    assert (last.in_from, last.undone(1500), last.undone(1600)) == (8, 8, 0)
    out = last.after_out(1200, 6, 8, 200)
    assert (out.out_from, out.out_to, out.in_from) == (6, 8, 8)
    assert out.cooling_out(1399)
    assert not out.cooling_in(1201)  # a scale-out ends it


def test_bounds_and_suspension_are_named() -> None:
    at: dict[str, Any] = {"capacity": 10, "limits": LIMITS, "last": LastScaling(), "now_s": 0.0}
    assert combine([Decision(20, "x", "p")], **at).not_scaled is NotScaled.AT_MAXIMUM
    suspended = Limits(1, 20, scale_out_suspended=True)
    decision = combine([Decision(20, "x", "p")], **(at | {"limits": suspended}))
    assert decision.not_scaled is NotScaled.SUSPENDED
    assert combine([Decision(5, "x", "p")], **(at | {"limits": suspended})).desired == 5
    suspended = Limits(1, 20, scale_in_suspended=True)
    decision = combine([Decision(5, "calm", "p")], **(at | {"limits": suspended}))
    assert (decision.desired, decision.not_scaled) == (10, NotScaled.SUSPENDED)
    assert decision.reason == "calm; scale-in is suspended"


@pytest.mark.parametrize(
    ("capacity", "percent", "least", "expected"),
    [
        (10, 25, None, 12),
        (2, 10, None, 3),
        (10, -25, None, 8),
        (2, -10, None, 1),
        (10, 10, None, 11),
        (10, 10, 3, 13),
        (10, -10, 3, 7),
        (10, 50, 3, 15),
        (0, 50, 3, 0),
        (10, 0, 3, 10),
    ],
)
def test_percent_steps_round_as_documented(
    capacity: int, percent: int, least: int | None, expected: int
) -> None:
    policy = StepScaling("s", AdjustmentType.PERCENT, (Step(percent),), minimum_magnitude=least)
    assert propose_step(policy, metric=1, threshold=0, capacity=capacity).desired == expected


def test_the_step_that_contains_the_distance_is_taken() -> None:
    policy = StepScaling(
        "s", AdjustmentType.CHANGE, (Step(1, 0.0, 10.0), Step(3, 10.0, None), Step(-1, None, 0.0))
    )
    check_steps(policy)
    decide = [
        propose_step(policy, metric=metric, threshold=50, capacity=5).desired
        for metric in (50, 59.9, 60, 49)
    ]
    assert decide == [6, 6, 8, 4]


def test_an_exact_capacity_is_taken_as_it_is() -> None:
    policy = StepScaling("s", AdjustmentType.EXACT, (Step(4, 0.0, None),))
    decide = [
        propose_step(policy, metric=2, threshold=1, capacity=capacity) for capacity in (1, 4, 9)
    ]
    assert [decision.desired for decision in decide] == [4, 4, 4]
    assert decide[1].not_scaled is NotScaled.AT_DESIRED


def test_a_metric_on_the_threshold_belongs_to_the_steps_below_when_there_are_no_others() -> None:
    policy = StepScaling("s", AdjustmentType.CHANGE, (Step(-1, -10.0, 0.0), Step(-3, None, -10.0)))
    check_steps(policy)
    decide = [
        propose_step(policy, metric=metric, threshold=50, capacity=5).desired
        for metric in (50, 41, 40, 39)
    ]
    assert decide == [4, 4, 2, 2]


@pytest.mark.parametrize(
    "steps",
    [
        (),
        (Step(1, 0, 10), Step(2, 5, None)),
        (Step(1, 0, 10), Step(2, 20, None)),
        (Step(1, 0, 10),),
        (Step(1, -10, 0), Step(1, 0, None)),
    ],
)
def test_gaps_overlaps_and_missing_open_ends_are_refused(steps: tuple[Step, ...]) -> None:
    with pytest.raises(InvalidInput):
        check_steps(StepScaling("s", AdjustmentType.CHANGE, steps))
