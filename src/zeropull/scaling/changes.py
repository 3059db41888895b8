"""Carries decisions out: capacity, cooldowns, activities; bounds and scheduled actions."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

from zeropull.autoscaler.readings import Decision, NotScaled
from zeropull.autoscaler.schedules import utc_text
from zeropull.metricstore.scaling_metrics import step_policy, tracking_policy
from zeropull.resources.capacity import CapacityChange
from zeropull.resources.scaling import ScalableTarget, ScalingPolicy, ScheduledAction
from zeropull.scaling.capacity import Capacity
from zeropull.scaling.documents import ScalingDocuments
from zeropull.scaling.targets import TargetState, last_scaling, limits_of
from zeropull.statestore import Store
from zeropull.telemetry import get_logger

log = get_logger(__name__)


class CapacityChanges:
    """Writes what was decided for a target; says in its state what stood in the way."""

    def __init__(self, store: Store, documents: ScalingDocuments) -> None:
        self._store = store
        self._documents = documents

    def carry_out(
        self,
        target: ScalableTarget,
        state: TargetState,
        capacity: Capacity,
        decision: Decision,
        cause: str,
        policy: ScalingPolicy | None,
        now_s: float,
        *,
        is_fast: bool,
    ) -> None:
        before = capacity.desired
        if decision.not_scaled is not None:
            state.activities.note_not_scaled(target, decision.not_scaled, before, cause, now_s)
            return
        if decision.desired > before and (pause := state.activities.retry(now_s)) is not None:
            state.decision = _paused(decision, before, pause)
            return
        since_s = state.overload_since_s if decision.desired > before else None
        if not self._change(capacity, decision, since_s, now_s, is_fast=is_fast):
            state.activities.note_not_scaled(target, NotScaled.UNSCALABLE, before, cause, now_s)
            return
        cooldown_out, cooldown_in = _cooldowns(policy)
        with self._store.transaction():
            last = last_scaling(target)
            if decision.desired > before:
                last = last.after_out(now_s, before, decision.desired, cooldown_out)
            else:
                last = last.after_in(now_s, before, cooldown_in)
            changed = replace(target, **asdict(last))
            if self._store.get(ScalableTarget, target.key) is not None:
                self._store.put(changed)
            state.activities.begin(target, decision.desired, cause, now_s)
        log.info(
            "capacity changed",
            target=target.resource_id,
            before=before,
            desired=decision.desired,
            reason=decision.reason,
        )

    def keep_bounds(
        self, target: ScalableTarget, state: TargetState, capacity: Capacity, now_s: float
    ) -> bool:
        """Move a capacity that is outside of the target's bounds; True when it was."""
        allowed = limits_of(target).clamp(capacity.desired)
        if allowed == capacity.desired:
            return False
        which = "minimum" if allowed > capacity.desired else "maximum"
        bound = target.minimum if allowed > capacity.desired else target.maximum
        cause = f"{which} capacity was set to {bound}"
        state.decision, state.decided_s = Decision(allowed, cause), now_s
        if allowed > capacity.desired and (pause := state.activities.retry(now_s)) is not None:
            state.decision = _paused(state.decision, capacity.desired, pause)
            return True
        if self._change(capacity, Decision(allowed, cause), None, now_s):
            state.activities.begin(target, allowed, cause, now_s)
            log.info("capacity moved into its bounds", target=target.resource_id, desired=allowed)
        return True

    def run_schedules(
        self, target: ScalableTarget, state: TargetState, now_s: float
    ) -> ScalableTarget:
        """Carry out what is due, once however often it was missed; what was due last wins."""
        due: list[tuple[float, ScheduledAction]] = []
        for action in self._documents.schedules.under(f"{target.key}/"):
            due_s = state.due_s(action)
            if due_s is not None and due_s <= now_s:
                due.append((due_s, action))
        for due_s, action in sorted(due, key=lambda each: (each[0], each[1].name)):
            is_within = (action.start_s or 0.0) <= due_s <= (action.end_s or math.inf)
            with self._store.transaction():
                self._store.put(replace(action, last_run_s=now_s))
                if is_within and not target.schedule_suspended:
                    minimum = target.minimum if action.minimum is None else action.minimum
                    maximum = target.maximum if action.maximum is None else action.maximum
                    before = target
                    target = replace(target, minimum=minimum, maximum=max(minimum, maximum))
                    self._store.put(target)
                    if target != before:  # rate(1 minute) must not push out what was scaled
                        state.activities.note_schedule(target, action.name, now_s)
                    log.info("scheduled action", action=action.name, due=utc_text(due_s))
        return target

    def _change(
        self,
        capacity: Capacity,
        decision: Decision,
        since_s: float | None,
        now_s: float,
        *,
        is_fast: bool = False,
    ) -> bool:
        """False when it cannot be changed now. The fast mode may correct itself while an
        earlier change is under way."""
        change = CapacityChange(decision.desired, reason=decision.reason, cause_s=since_s)
        return capacity.change(self._store, change, now_s, while_scaling=is_fast)


def _paused(decision: Decision, desired: int, pause: tuple[float, str]) -> Decision:
    left_s, message = pause
    why = f"{decision.reason}; the last attempt failed, next in {left_s:.0f} s: {message}"
    return Decision(desired, why, decision.policy, NotScaled.NO_CAPACITY)


def _cooldowns(policy: ScalingPolicy | None) -> tuple[int, int]:
    """(scale-out, scale-in) in seconds."""
    if policy is None:
        return 0, 0
    if policy.policy_type == "StepScaling":
        cooldown = step_policy(policy).cooldown_s
        return cooldown, cooldown
    tracking = tracking_policy(policy)
    return tracking.scale_out_cooldown_s, tracking.scale_in_cooldown_s
