"""What updates of endpoints and of components have in common: batches, limits, alarms. Pure."""

from __future__ import annotations

import math

from zeropull.reconcilers.plan import Draft
from zeropull.resources.endpoint_configs import CapacitySize, UpdatePolicy


def batch_size(size: CapacitySize, whole: int) -> int:
    """A batch of `whole` instances or copies, at least one of them."""
    if size.unit == "CAPACITY_PERCENT":
        return max(1, math.floor(whole * size.value / 100))
    return max(1, size.value)


def next_batch(size: CapacitySize, shifted: int, wanted: int) -> int:
    """How many of `wanted` there are to be after the next batch, when there are `shifted` now."""
    return min(wanted, shifted + batch_size(size, wanted))


def rollback_reason(
    draft: Draft, policy: UpdatePolicy, started_s: float, *, is_shifting: bool
) -> str | None:
    """Why an update that goes on must go back: its time is over, or an alarm has gone off since
    it began to shift."""
    strategy = policy.rolling or policy.blue_green
    limit_s = strategy.max_execution_s if strategy else None
    if limit_s is not None and draft.now_s - started_s > limit_s:
        return f"The update took longer than its limit of {limit_s:.0f} s."
    alarms = [name for name in policy.rollback_alarms if name in draft.view.alarms]
    if alarms and is_shifting:
        return f"The update was rolled back: alarm {alarms[0]} is in ALARM."
    return None
