"""Application Auto Scaling's own loop: readings -> metrics -> alarms -> decisions -> capacity.

A target decides as AWS documents it (`aws`), or every second from exact counts (`fast`, chosen by
the tag `zeropull:scaling` on the scalable target or by the settings). Deciding is
`zeropull.autoscaler`; here the state is read, the decision written down and the capacity changed.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from zeropull.autoscaler.alarms import AlarmState
from zeropull.autoscaler.combining import LastScaling, combine
from zeropull.autoscaler.fast import FastPolicy, Fleet, decide_fast
from zeropull.autoscaler.loadwindow import LoadWindow
from zeropull.autoscaler.readings import Decision, Limits, NotScaled
from zeropull.autoscaler.schedules import next_run, utc_text
from zeropull.autoscaler.stepscaling import propose_step
from zeropull.autoscaler.targettracking import propose
from zeropull.controlapi.exchange import Exchange
from zeropull.errors import ZeropullError
from zeropull.metricstore.alarmspecs import alarm_spec
from zeropull.metricstore.scalingmetrics import (
    concurrency_target,
    step_policy,
    tracking_policy,
)
from zeropull.metricstore.store import MetricStore
from zeropull.reconcilers.alarming import evaluate_alarms
from zeropull.reconcilers.publishing import (
    LoadSecond,
    Resource,
    publish_readings,
    publish_utilization,
)
from zeropull.reconcilers.scaled import Scaled, scaled_by
from zeropull.resources.alarms import MetricAlarm, alarm_key
from zeropull.resources.capacity import CapacityChange
from zeropull.resources.instances import Instance, TimelineRecord
from zeropull.resources.scaling import (
    COMPONENT_DIMENSION,
    SCALING_TAG,
    ScalableTarget,
    ScalingActivity,
    ScalingPolicy,
    ScheduledAction,
    component_of,
)
from zeropull.resources.settings import ScalingSettings
from zeropull.resources.tags import ResourceTags
from zeropull.statestore import Store
from zeropull.telemetry import get_logger

TICK_S = 1.0
READINGS_DELAY_S = 2
"""Alarms are evaluated this long after a period has ended, so that its readings are in."""
UTILIZATION_S = 60
ROLL_UP_S = 3600
ACTIVITIES_KEPT = 200
STARTS_REMEMBERED = 10
FIRST_GUESS_S = 60.0

log = get_logger(__name__)


@dataclass(slots=True)
class TargetState:
    """What is kept in memory of one target; all of it can be lost."""

    window: LoadWindow = field(default_factory=LoadWindow)
    newest: LoadSecond = field(default_factory=LoadSecond)
    newest_second: int = 0
    last_not_scaled: tuple[str, ...] = ()
    decision: Decision | None = None
    decided_s: float = 0.0
    overload_since_s: float | None = None


class ScalingController:
    """`run` until cancelled; `decisions` is what `zeropull explain` shows."""

    def __init__(
        self,
        store: Store,
        metrics: MetricStore,
        exchange: Exchange,
        settings: ScalingSettings,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._exchange = exchange
        self._settings = settings
        self._clock = clock
        self._targets: dict[str, TargetState] = {}
        self._evaluated_s = 0
        self._utilized_s = 0.0
        self._rolled_up_s = 0.0

    async def run(self) -> None:
        while True:
            await asyncio.sleep(TICK_S - self._clock() % TICK_S)
            try:
                self.tick()
            except ZeropullError as error:
                log.error("scaling round failed", error=error.reason)

    def decisions(self) -> dict[str, tuple[str, float, Decision]]:
        """By target key: how it is decided for, when it last was, and the decision."""
        found: dict[str, tuple[str, float, Decision]] = {}
        for stored in self._store.select(ScalableTarget):
            state = self._targets.get(stored.document.key)
            if state is not None and state.decision is not None:
                mode = self._mode(stored.document)
                found[stored.document.key] = (mode, state.decided_s, state.decision)
        return found

    def tick(self) -> None:
        """One second. Never awaits, so that nothing changes under its feet."""
        now_s = self._clock()
        loads = publish_readings(self._metrics, self._exchange.take_readings())
        self._publish_utilization(now_s)
        boundary = int((now_s - READINGS_DELAY_S) // 10) * 10
        due: set[str] = set()
        if boundary > self._evaluated_s:
            self._evaluated_s = boundary
            due = evaluate_alarms(self._store, self._metrics, boundary)
        targets = [stored.document for stored in self._store.select(ScalableTarget)]
        for target in targets:
            try:
                self._decide(target, loads, due, now_s)
            except ZeropullError as error:
                log.warning("target not decided", target=target.resource_id, error=error.reason)
        self._forget({target.key for target in targets})
        self._metrics.flush()
        if now_s - self._rolled_up_s >= ROLL_UP_S:
            self._rolled_up_s = now_s
            self._metrics.roll_up(now_s)

    # ---------------------------------------------------------------------------------- deciding

    def _decide(
        self,
        target: ScalableTarget,
        loads: dict[tuple[Resource, int], LoadSecond],
        due: set[str],
        now_s: float,
    ) -> None:
        state = self._targets.setdefault(target.key, TargetState())
        self._feed(target, state, loads)
        target = self._run_schedules(target, now_s)
        scaled = scaled_by(self._store, target)
        if scaled is None:
            return
        with self._store.transaction():
            self._finish_activities(target, scaled, now_s)
        if self._keep_bounds(target, scaled, now_s):
            return
        policies = [
            stored.document for stored in self._store.select(ScalingPolicy, prefix=f"{target.key}/")
        ]
        if self._mode(target) == "fast":
            self._decide_fast(target, state, scaled, policies, now_s)
        else:
            self._decide_as_aws(target, state, scaled, policies, due, now_s)

    def _decide_as_aws(
        self,
        target: ScalableTarget,
        state: TargetState,
        scaled: Scaled,
        policies: list[ScalingPolicy],
        due: set[str],
        now_s: float,
    ) -> None:
        """When an alarm of one of the policies was evaluated."""
        proposals: list[Decision] = []
        alarms: dict[str, MetricAlarm] = {}
        for policy in policies:
            proposal, alarm = self._proposal(policy, scaled, due)
            if proposal is not None:
                proposals.append(proposal)
            if alarm is not None:
                alarms[policy.name] = alarm
        if not proposals:
            return
        decision = combine(
            proposals,
            capacity=scaled.desired,
            limits=_limits(target),
            last=LastScaling(
                target.out_at_s, target.out_from, target.out_to, target.out_cooldown_s,
                target.in_at_s, target.in_cooldown_s,
            ),
            now_s=now_s,
        )  # fmt: skip
        state.decision, state.decided_s = decision, now_s
        if decision.not_scaled is not None and not alarms:
            return  # nothing is in ALARM: there was no attempt
        cause = _cause(decision, alarms)
        policy_of = {policy.name: policy for policy in policies}
        chosen = policy_of.get(decision.policy or "")
        self._carry_out(target, state, scaled, decision, cause, chosen, now_s)

    def _proposal(
        self, policy: ScalingPolicy, scaled: Scaled, due: set[str]
    ) -> tuple[Decision | None, MetricAlarm | None]:
        """What the policy would do, and the alarm in ALARM that asks for it."""
        if policy.policy_type == "StepScaling":
            return self._step_proposal(policy, scaled, due)
        found = [self._store.get(MetricAlarm, alarm_key(policy.account, n)) for n in policy.alarms]
        alarms = [stored.document for stored in found if stored is not None]
        if len(alarms) != 2 or not any(alarm.key in due for alarm in alarms):
            return None, None
        high, low = alarms
        spec = alarm_spec(high.request)
        series = spec.series(self._metrics, policy.account, self._evaluated_s)
        newest = max(series, default=None)
        proposal = propose(
            tracking_policy(policy),
            high=AlarmState(high.state) if high.actions_enabled else AlarmState.OK,
            low=AlarmState(low.state) if low.actions_enabled else AlarmState.OK,
            metric=None if newest is None else series[newest],
            capacity=scaled.desired,
        )
        alarming = high if high.state == AlarmState.ALARM else low
        return proposal, alarming if alarming.state == AlarmState.ALARM else None

    def _step_proposal(
        self, policy: ScalingPolicy, scaled: Scaled, due: set[str]
    ) -> tuple[Decision | None, MetricAlarm | None]:
        for stored in self._store.select(MetricAlarm, prefix=f"{policy.account}/"):
            alarm = stored.document
            if alarm.key not in due or policy.arn not in (alarm.request.get("AlarmActions") or []):
                continue
            if alarm.state != AlarmState.ALARM or not alarm.actions_enabled:
                continue
            spec = alarm_spec(alarm.request)
            values = list(spec.series(self._metrics, policy.account, self._evaluated_s).values())
            if not values:
                continue
            config = policy.request["StepScalingPolicyConfiguration"]
            how = config.get("MetricAggregationType", "Average")
            aggregate = {"Minimum": min, "Maximum": max}.get(how, statistics.fmean)
            metric = float(aggregate(values[-spec.rule.evaluation_periods :]))
            proposal = propose_step(
                step_policy(policy),
                metric=metric,
                threshold=spec.rule.threshold,
                capacity=scaled.desired,
            )
            return proposal, alarm
        return None, None

    def _decide_fast(
        self,
        target: ScalableTarget,
        state: TargetState,
        scaled: Scaled,
        policies: list[ScalingPolicy],
        now_s: float,
    ) -> None:
        tracked = [
            (policy, goal)
            for policy in policies
            if (goal := concurrency_target(policy)) is not None
        ]
        if not tracked:
            return
        policy, goal = min(tracked, key=lambda each: each[1])
        fleet = self._fleet(scaled, now_s)
        sustained = state.window.sustained(1)
        overloaded = sustained is not None and sustained > fleet.ready * goal
        if not overloaded:
            state.overload_since_s = None
        elif state.overload_since_s is None:
            state.overload_since_s = float(state.newest_second)
        decision = decide_fast(
            FastPolicy(policy.name, goal, tracking_policy(policy).scale_in_disabled),
            state.window,
            queue_age_s=state.newest.queue_age_s,
            fleet=fleet,
            limits=_limits(target),
            now_s=now_s,
        )
        before = state.decision
        state.decision, state.decided_s = decision, now_s
        if before is None or before.not_scaled != decision.not_scaled:
            log.info(
                "fast decision",
                target=target.resource_id,
                desired=decision.desired,
                not_scaled=decision.not_scaled,
                reason=decision.reason,
            )
        if decision.desired == scaled.desired:
            return
        cause = f"policy {policy.name} in the fast mode: {decision.reason}"
        self._carry_out(target, state, scaled, decision, cause, policy, now_s)

    # ------------------------------------------------------------------------------------ acting

    def _carry_out(
        self,
        target: ScalableTarget,
        state: TargetState,
        scaled: Scaled,
        decision: Decision,
        cause: str,
        policy: ScalingPolicy | None,
        now_s: float,
    ) -> None:
        capacity = scaled.desired
        if decision.not_scaled is not None:
            self._note_not_scaled(target, state, decision.not_scaled, capacity, cause, now_s)
            return
        since_s = state.overload_since_s if decision.desired > capacity else None
        is_fast = self._mode(target) == "fast"
        if not self._change(scaled, decision, since_s, now_s, is_fast=is_fast):
            self._note_not_scaled(target, state, NotScaled.UNSCALABLE, capacity, cause, now_s)
            return
        state.last_not_scaled = ()
        cooldown_out, cooldown_in = _cooldowns(policy)
        with self._store.transaction():
            if decision.desired > capacity:
                changed = replace(
                    target,
                    out_at_s=now_s,
                    out_from=capacity,
                    out_to=decision.desired,
                    out_cooldown_s=cooldown_out,
                    in_at_s=0.0,
                    in_cooldown_s=0,
                )
            else:
                changed = replace(target, in_at_s=now_s, in_cooldown_s=cooldown_in)
            if self._store.get(ScalableTarget, target.key) is not None:
                self._store.put(changed)
            self._record(target, decision.desired, cause, now_s)
        log.info(
            "capacity changed",
            target=target.resource_id,
            before=capacity,
            desired=decision.desired,
            reason=decision.reason,
        )

    def _change(
        self,
        scaled: Scaled,
        decision: Decision,
        since_s: float | None,
        now_s: float,
        *,
        is_fast: bool = False,
    ) -> bool:
        """False when it cannot be scaled now. The fast mode may correct itself while an
        earlier change is under way."""
        change = CapacityChange(decision.desired, reason=decision.reason, cause_s=since_s)
        return scaled.change(self._store, change, now_s, while_scaling=is_fast)

    def _keep_bounds(self, target: ScalableTarget, scaled: Scaled, now_s: float) -> bool:
        """Move a capacity that is outside of the target's bounds; True when it was."""
        allowed = _limits(target).clamp(scaled.desired)
        if allowed == scaled.desired:
            return False
        which = "minimum" if allowed > scaled.desired else "maximum"
        bound = target.minimum if allowed > scaled.desired else target.maximum
        cause = f"{which} capacity was set to {bound}"
        if self._change(scaled, Decision(allowed, cause), None, now_s):
            with self._store.transaction():
                self._record(target, allowed, cause, now_s)
            log.info("capacity moved into its bounds", target=target.resource_id, desired=allowed)
        return True

    def _run_schedules(self, target: ScalableTarget, now_s: float) -> ScalableTarget:
        """Carry out what is due; the newest action wins."""
        for stored in self._store.select(ScheduledAction, prefix=f"{target.key}/"):
            action = stored.document
            due_s = next_run(
                action.schedule, action.timezone, action.last_run_s, created_s=action.created_s
            )
            if due_s is None or due_s > now_s:
                continue
            is_within = (action.start_s or 0.0) <= due_s <= (action.end_s or math.inf)
            with self._store.transaction():
                self._store.put(replace(action, last_run_s=now_s))
                if is_within and not target.schedule_suspended:
                    minimum = target.minimum if action.minimum is None else action.minimum
                    maximum = target.maximum if action.maximum is None else action.maximum
                    target = replace(target, minimum=minimum, maximum=max(minimum, maximum))
                    self._store.put(target)
                    log.info("scheduled action", action=action.name, due=utc_text(due_s))
        return target

    def _record(self, target: ScalableTarget, desired: int, cause: str, now_s: float) -> None:
        """In a transaction. An activity that was still in progress has been overtaken."""
        what = "copy count" if target.dimension == COMPONENT_DIMENSION else "instance count"
        for stored in self._activities(target):
            if stored.status == "InProgress":
                self._store.put(replace(stored, status="Overridden", ended_s=now_s))
        self._store.put(
            ScalingActivity(
                activity_id=str(uuid.uuid4()),
                account=target.account,
                resource_id=target.resource_id,
                dimension=target.dimension,
                description=f"Setting desired {what} to {desired}.",
                cause=cause,
                began_s=now_s,
                status="InProgress",
                message=(
                    f"Successfully set desired {what} to {desired}. Waiting for change to be "
                    "fulfilled by sagemaker."
                ),
                desired=desired,
            )
        )
        self._bound_activities(target)

    def _note_not_scaled(
        self,
        target: ScalableTarget,
        state: TargetState,
        code: NotScaled,
        capacity: int,
        cause: str,
        now_s: float,
    ) -> None:
        """Only the first of a run of equal reasons is recorded, and only those AWS knows."""
        if state.last_not_scaled == (code.value, str(capacity)) or code not in _RECORDED:
            return
        state.last_not_scaled = (code.value, str(capacity))
        reason: dict[str, str | int] = {"Code": code.value}
        if code is NotScaled.AT_MAXIMUM:
            reason["MaxCapacity"] = target.maximum
        elif code is NotScaled.AT_MINIMUM:
            reason["MinCapacity"] = target.minimum
        elif code is NotScaled.AT_DESIRED:
            reason["CurrentCapacity"] = capacity
        with self._store.transaction():
            self._store.put(
                ScalingActivity(
                    activity_id=str(uuid.uuid4()),
                    account=target.account,
                    resource_id=target.resource_id,
                    dimension=target.dimension,
                    description="Attempting to scale due to alarm triggered",
                    cause=cause,
                    began_s=now_s,
                    ended_s=now_s,
                    status="Failed",
                    not_scaled=(dict(reason),),
                )
            )
            self._bound_activities(target)

    def _finish_activities(self, target: ScalableTarget, scaled: Scaled, now_s: float) -> None:
        """Give activities in progress their end, as the endpoint or the component shows it."""
        for activity in self._activities(target):
            if activity.status != "InProgress" or scaled.is_in_progress:
                continue
            done = scaled.current == activity.desired
            what = f"{scaled.unit} count"
            message = (
                f"Successfully set desired {what} to {activity.desired}. Change successfully "
                "fulfilled by sagemaker."
                if done
                else f"The {what} is {scaled.current}, not {activity.desired}: "
                f"{scaled.failure_reason or 'the change was rolled back'}"
            )
            status = "Successful" if done else "Failed"
            self._store.put(replace(activity, status=status, ended_s=now_s, message=message))

    # ------------------------------------------------------------------------------------ reading

    def _feed(
        self,
        target: ScalableTarget,
        state: TargetState,
        loads: dict[tuple[Resource, int], LoadSecond],
    ) -> None:
        mine = [
            (second, load) for (resource, second), load in loads.items() if _is_of(resource, target)
        ]
        for second, load in sorted(mine, key=lambda each: each[0]):
            if second > state.newest_second:
                state.window.add(second, load.load)
                state.newest, state.newest_second = load, second

    def _fleet(self, scaled: Scaled, now_s: float) -> Fleet:
        serving, began_s = scaled.units(self._store)
        ready = min(serving, scaled.desired)
        startup_s = self._startup_s(scaled)
        waiting = max(0, scaled.desired - ready)
        newest = list(began_s)[-waiting:] if waiting else []
        began = newest + [now_s] * (waiting - len(newest))
        return Fleet(ready, tuple(max(now_s, at + startup_s) for at in began), startup_s)

    def _startup_s(self, scaled: Scaled) -> float:
        """The median of the newest launches: of new instances, or of the component's copies."""
        records = [
            stored.document
            for stored in self._store.select(TimelineRecord, endpoint_uid=scaled.endpoint_uid)
            if stored.document.ready_s is not None
            and (
                stored.document.new_instance
                if scaled.component is None
                else stored.document.component == scaled.component
            )
        ]
        newest = sorted(records, key=lambda record: record.began_s)[-STARTS_REMEMBERED:]
        seconds = [record.ready_s - record.began_s for record in newest if record.ready_s]
        return statistics.median(seconds) if seconds else FIRST_GUESS_S

    def _mode(self, target: ScalableTarget) -> str:
        stored = self._store.get(ResourceTags, target.arn)
        tag = stored.document.tags.get(SCALING_TAG) if stored is not None else None
        return tag if tag in ("aws", "fast") else self._settings.mode

    def _activities(self, target: ScalableTarget) -> list[ScalingActivity]:
        stored = self._store.select(ScalingActivity, prefix=f"{target.key}/")
        return [each.document for each in stored]

    def _bound_activities(self, target: ScalableTarget) -> None:
        activities = sorted(self._activities(target), key=lambda activity: activity.began_s)
        for activity in activities[:-ACTIVITIES_KEPT]:
            self._store.delete(ScalingActivity, activity.key)

    def _publish_utilization(self, now_s: float) -> None:
        if now_s - self._utilized_s < UTILIZATION_S:
            return
        self._utilized_s = now_s
        for stored in self._store.select(Instance):
            instance = stored.document
            received = self._exchange.nodes.get(instance.instance_id)
            if received is not None and now_s - received.received_s < UTILIZATION_S:
                publish_utilization(
                    self._metrics,
                    received.report,
                    instance.account,
                    instance.endpoint,
                    instance.variant,
                )

    def _forget(self, known: set[str]) -> None:
        for key in self._targets.keys() - known:
            del self._targets[key]


_RECORDED = frozenset(
    {
        NotScaled.ANTICIPATED_FLAPPING,
        NotScaled.UNSCALABLE,
        NotScaled.AT_MAXIMUM,
        NotScaled.AT_MINIMUM,
        NotScaled.AT_DESIRED,
    }
)


def _is_of(resource: Resource, target: ScalableTarget) -> bool:
    if resource.account != target.account:
        return False
    if target.dimension == COMPONENT_DIMENSION:
        return resource.component == component_of(target.resource_id)
    here = (resource.endpoint, resource.variant)
    return resource.component is None and here == target.endpoint_and_variant


def _limits(target: ScalableTarget) -> Limits:
    return Limits(
        target.minimum, target.maximum, target.scale_out_suspended, target.scale_in_suspended
    )


def _cooldowns(policy: ScalingPolicy | None) -> tuple[int, int]:
    """(scale-out, scale-in) in seconds."""
    if policy is None:
        return 0, 0
    if policy.policy_type == "StepScaling":
        cooldown = step_policy(policy).cooldown_s
        return cooldown, cooldown
    tracking = tracking_policy(policy)
    return tracking.scale_out_cooldown_s, tracking.scale_in_cooldown_s


def _cause(decision: Decision, alarms: dict[str, MetricAlarm]) -> str:
    alarm = alarms.get(decision.policy or "")
    if alarm is None:
        return decision.reason
    return f"monitor alarm {alarm.name} in state ALARM triggered policy {decision.policy}"
