"""Step scaling as Application Auto Scaling documents it.

Source: Application Auto Scaling user guide, "Step scaling policies".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from zeropull.autoscaler.readings import Decision, NotScaled
from zeropull.errors import InvalidInput


class AdjustmentType(StrEnum):
    CHANGE = "ChangeInCapacity"
    PERCENT = "PercentChangeInCapacity"
    EXACT = "ExactCapacity"


@dataclass(frozen=True, slots=True)
class Step:
    """Bounds are relative to the alarm's threshold; None is unbounded."""

    adjustment: int
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True, slots=True)
class StepScaling:
    name: str
    adjustment_type: AdjustmentType
    steps: tuple[Step, ...]
    cooldown_s: int = 300
    minimum_magnitude: int | None = None


def check_steps(policy: StepScaling) -> None:
    """Raises InvalidInput when ranges overlap, leave a gap or lack an open end."""
    ordered = sorted(policy.steps, key=lambda step: -math.inf if step.lower is None else step.lower)
    if not ordered:
        raise InvalidInput(f"step scaling policy {policy.name!r} has no step adjustments")
    for step in ordered:
        if step.lower is None and step.upper is None and len(ordered) > 1:
            raise InvalidInput("a step without bounds must be the only one")
        if step.lower is not None and step.upper is not None and step.lower >= step.upper:
            raise InvalidInput(f"step lower bound {step.lower} is not below its upper {step.upper}")
    if sum(step.lower is None for step in ordered) > 1:
        raise InvalidInput("at most one step may have no lower bound")
    if sum(step.upper is None for step in ordered) > 1:
        raise InvalidInput("at most one step may have no upper bound")
    if any(step.lower is not None and step.lower < 0 for step in ordered) and (
        ordered[0].lower is not None
    ):
        raise InvalidInput("a negative lower bound demands a step without lower bound")
    if any(step.upper is not None and step.upper > 0 for step in ordered) and all(
        step.upper is not None for step in ordered
    ):
        raise InvalidInput("a positive upper bound demands a step without upper bound")
    for below, above in pairwise(ordered):
        if below.upper != above.lower:
            raise InvalidInput(
                f"steps overlap or leave a gap between {below.upper} and {above.lower}"
            )


def propose_step(
    policy: StepScaling, *, metric: float, threshold: float, capacity: int
) -> Decision:
    """What the policy does while its alarm is in ALARM; `metric` is aggregated as it asks."""
    distance = metric - threshold
    step = next((step for step in policy.steps if _contains(step, distance)), None)
    if step is None and distance == 0:
        # A metric on the threshold of an alarm that looks for less: the upper bound is inclusive.
        step = next((step for step in policy.steps if step.upper == 0), None)
    if step is None:
        why = f"no step covers {metric:g}, which is {distance:+g} from the threshold {threshold:g}"
        return Decision(capacity, why, policy.name, NotScaled.AT_DESIRED)
    wanted = max(0, _adjusted(policy, step.adjustment, capacity))
    why = (
        f"{metric:g} is {distance:+g} from the threshold {threshold:g}: "
        f"{policy.adjustment_type} {step.adjustment:+d} makes {capacity} into {wanted}"
    )
    if wanted == capacity:
        return Decision(capacity, why, policy.name, NotScaled.AT_DESIRED)
    return Decision(wanted, why, policy.name)


def _contains(step: Step, distance: float) -> bool:
    lower = -math.inf if step.lower is None else step.lower
    upper = math.inf if step.upper is None else step.upper
    if distance >= 0:  # above the threshold the lower bound is inclusive, below it the upper one
        return lower <= distance < upper or distance == lower
    return lower < distance <= upper


def _adjusted(policy: StepScaling, adjustment: int, capacity: int) -> int:
    match policy.adjustment_type:
        case AdjustmentType.EXACT:
            return adjustment
        case AdjustmentType.CHANGE:
            return capacity + adjustment
        case AdjustmentType.PERCENT:
            return capacity + _percent_change(policy, adjustment, capacity)


def _percent_change(policy: StepScaling, adjustment: int, capacity: int) -> int:
    raw = capacity * adjustment / 100
    if raw > 1:
        change = math.floor(raw)
    elif raw > 0:
        change = 1
    elif raw < -1:
        change = math.ceil(raw)
    elif raw < 0:
        change = -1
    else:
        change = 0
    least = policy.minimum_magnitude or 0
    if change and abs(change) < least:
        change = least if change > 0 else -least
    return change
