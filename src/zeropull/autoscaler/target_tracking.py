"""Target tracking as Application Auto Scaling documents it.

Source: Application Auto Scaling user guide, "Target tracking scaling policies", and SageMaker's
"Auto scaling policy for real-time endpoints". Scale out after 3 periods above the target, in after
15 minutes below 0.9 times it, by a step in proportion to the metric.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from zeropull.autoscaler.alarms import AlarmRule, AlarmState
from zeropull.autoscaler.readings import Decision, NotScaled

SCALE_IN_FRACTION = 0.9
SCALE_IN_S = 15 * 60
OUT_PERIODS = 3
DEFAULT_COOLDOWN_S = 300


@dataclass(frozen=True, slots=True)
class TargetTracking:
    """A target-tracking policy. `period_s` is 10 for the high-resolution metrics, else 60."""

    name: str
    target: float
    period_s: int
    scale_out_cooldown_s: int = DEFAULT_COOLDOWN_S
    scale_in_cooldown_s: int = DEFAULT_COOLDOWN_S
    scale_in_disabled: bool = False


def high_alarm(policy: TargetTracking) -> AlarmRule:
    """The managed AlarmHigh: every one of 3 periods above the target."""
    return AlarmRule(
        "GreaterThanThreshold", policy.target, policy.period_s, OUT_PERIODS, OUT_PERIODS
    )


def low_alarm(policy: TargetTracking) -> AlarmRule:
    """The managed AlarmLow: every period of 15 minutes below 0.9 times the target."""
    periods = SCALE_IN_S // policy.period_s
    threshold = round(SCALE_IN_FRACTION * policy.target, 6)
    return AlarmRule("LessThanThreshold", threshold, policy.period_s, periods, periods)


def propose(
    policy: TargetTracking,
    *,
    high: AlarmState,
    low: AlarmState,
    metric: float | None,
    capacity: int,
) -> Decision:
    """What this policy alone would do; `metric` is its newest datapoint, per unit of capacity.

    From zero units nothing can be computed: a step policy has to make the first.
    """
    lacks_data = AlarmState.INSUFFICIENT_DATA in (high, low) and high is not AlarmState.ALARM
    if metric is None or lacks_data:
        return _stay(policy, capacity, NotScaled.NO_DATA, "not enough data for a decision")
    if high is AlarmState.ALARM:
        wanted = _in_proportion(capacity, metric, policy.target)
        if wanted > capacity:
            return Decision(
                wanted,
                f"{metric:g} is above the target {policy.target:g}: "
                f"ceil({capacity} × {metric:g} / {policy.target:g}) = {wanted}",
                policy.name,
            )
        # The alarm looks at three periods and the step at the newest: it may be calm again.
        return _stay(policy, capacity, NotScaled.AT_DESIRED, f"the newest reading is {metric:g}")
    if low is AlarmState.ALARM and capacity > 0:
        if policy.scale_in_disabled:
            return _stay(
                policy, capacity, NotScaled.SUSPENDED, "scale-in is disabled in the policy"
            )
        wanted = _in_proportion(capacity, metric, policy.target)
        if wanted < capacity:
            return Decision(
                wanted,
                f"{metric:g} stayed below 0.9 × {policy.target:g} for 15 minutes: "
                f"ceil({capacity} × {metric:g} / {policy.target:g}) = {wanted}",
                policy.name,
            )
        return _stay(
            policy,
            capacity,
            NotScaled.ANTICIPATED_FLAPPING,
            f"{capacity - 1} would bring {metric:g} back above the target {policy.target:g}",
        )
    calm = f"{metric:g} calls for no change"
    if policy.scale_in_disabled:
        # Without a say in it: a step policy may scale in beside it.
        return _stay(policy, capacity, NotScaled.SUSPENDED, f"{calm}, and scale-in is disabled")
    return _stay(policy, capacity, NotScaled.WITHIN_TARGET, calm)


def _in_proportion(capacity: int, metric: float, target: float) -> int:
    """Rounded up, but not because 3 × 1.1 / 1.1 is a little more than 3 in binary."""
    return math.ceil(round(capacity * metric / target, 9))


def _stay(policy: TargetTracking, capacity: int, code: NotScaled, why: str) -> Decision:
    return Decision(capacity, why, policy.name, code)
