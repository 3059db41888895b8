"""What a decision is made from, and what it looks like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

Series = Mapping[int, float]
"""Datapoints by the Unix second at which their period starts; a missing key is a missing point."""


class NotScaled(StrEnum):
    """Why an attempt changed nothing: the codes of DescribeScalingActivities' NotScaledReasons,
    and our own for the reasons that AWS does not report."""

    ANTICIPATED_FLAPPING = "AutoScalingAnticipatedFlapping"
    UNSCALABLE = "TargetServicePutResourceAsUnscalable"
    AT_MAXIMUM = "AlreadyAtMaxCapacity"
    AT_MINIMUM = "AlreadyAtMinCapacity"
    AT_DESIRED = "AlreadyAtDesiredCapacity"
    COOLING_DOWN = "CoolingDown"
    SUSPENDED = "Suspended"
    NO_DATA = "InsufficientData"
    WITHIN_TARGET = "WithinTarget"
    STARTING = "CapacityStarting"
    NO_CAPACITY = "InsufficientCapacity"
    INTERNAL = "InternalError"


@dataclass(frozen=True, slots=True)
class Decision:
    """The capacity that should be desired now, and why. `policy` names whose proposal won.

    `not_scaled` is None exactly when `desired` differs from the capacity that was given.
    """

    desired: int
    reason: str
    policy: str | None = None
    not_scaled: NotScaled | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """A scalable target's bounds and what it suspends."""

    minimum: int
    maximum: int
    scale_out_suspended: bool = False
    scale_in_suspended: bool = False

    def clamp(self, capacity: int) -> int:
        return max(self.minimum, min(self.maximum, capacity))
