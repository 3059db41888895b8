"""Application Auto Scaling's own loop: readings -> metrics -> alarms -> decisions -> capacity.

A target decides as AWS documents it (`aws`), or every second from exact counts (`fast`, chosen by
the tag `zeropull:scaling` on the scalable target or by the settings). Deciding is
`zeropull.autoscaler`; here the state is read, the decision written down and the capacity changed.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from zeropull.autoscaler.alarms import AlarmState
from zeropull.autoscaler.combining import LastScaling, combine
from zeropull.autoscaler.fast import FastPolicy, Fleet, decide_fast
from zeropull.autoscaler.loadwindow import PEAK_S, LoadWindow
from zeropull.autoscaler.readings import Decision, Limits, NotScaled
from zeropull.autoscaler.schedules import next_run, utc_text
from zeropull.autoscaler.stepscaling import propose_step
from zeropull.autoscaler.targettracking import propose
from zeropull.controlapi.exchange import Exchange
from zeropull.errors import ZeropullError
from zeropull.metricstore.alarmspecs import alarm_spec
from zeropull.metricstore.scalingmetrics import (
    SAGEMAKER,
    concurrency_target,
    step_policy,
    tracking_policy,
)
from zeropull.metricstore.store import MetricKey, MetricStore
from zeropull.reconcilers.activities import ActivityLog
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
from zeropull.resources.endpoints import Endpoint
from zeropull.resources.instances import CopyRecord, Instance, InstanceState, TimelineRecord
from zeropull.resources.scaling import (
    COMPONENT_DIMENSION,
    SCALING_TAG,
    ScalableTarget,
    ScalingPolicy,
    ScheduledAction,
    component_of,
)
from zeropull.resources.settings import ScalingSettings
from zeropull.resources.tags import ResourceTags
from zeropull.statestore import Store
from zeropull.statestore.cached import CachedKind
from zeropull.telemetry import get_logger

TICK_S = 1.0
READINGS_DELAY_S = 2
"""Alarms are evaluated this long after a period has ended, so that its readings are in."""
UTILIZATION_S = 60
ROLL_UP_S = 3600
STARTS_REMEMBERED = 10
FIRST_GUESS_S = 60.0

Source = tuple[str, ...]
"""Account and component, or account, endpoint and variant."""
Loads = dict[Source, list[tuple[int, LoadSecond]]]

log = get_logger(__name__)


@dataclass(slots=True)
class TargetState:
    """What is kept in memory of one target; all of it can be read again from the stores."""

    activities: ActivityLog
    window: LoadWindow = field(default_factory=LoadWindow)
    newest: LoadSecond = field(default_factory=LoadSecond)
    newest_second: int = 0
    decision: Decision | None = None
    decided_s: float = 0.0
    overload_since_s: float | None = None
    units: tuple[int, Sequence[float]] = (0, ())
    units_revision: int = -1


@dataclass(frozen=True, slots=True)
class Proposal:
    """What one policy would do, the alarm in ALARM that asks for it, and whether one of its alarms
    was evaluated just now: only then may it begin something."""

    decision: Decision
    alarm: MetricAlarm | None
    is_due: bool

    def as_vote(self, capacity: int) -> Decision:
        """Its say in a scale-in that another policy begins."""
        if self.decision.desired <= capacity:
            return self.decision
        why = "its alarm is evaluated later"
        return Decision(capacity, why, self.decision.policy, NotScaled.WITHIN_TARGET)


class _Known:
    """The documents that every second is decided from."""

    def __init__(self, store: Store) -> None:
        self.targets = CachedKind(store, ScalableTarget)
        self.policies = CachedKind(store, ScalingPolicy)
        self.schedules = CachedKind(store, ScheduledAction)
        self.alarms = CachedKind(store, MetricAlarm)
        self.tags = CachedKind(store, ResourceTags)
        self.instances = CachedKind(store, Instance, lambda each: each.endpoint_uid)
        self.timelines = CachedKind(store, TimelineRecord, lambda each: each.endpoint_uid)


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
        self._known = _Known(store)
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
        loads = _by_source(publish_readings(self._metrics, self._exchange.take_readings()))
        self._publish_utilization(now_s)
        boundary = int((now_s - READINGS_DELAY_S) // 10) * 10
        due: set[str] = set()
        is_boundary = boundary > self._evaluated_s
        if is_boundary:
            self._evaluated_s = boundary
            due = evaluate_alarms(self._store, self._metrics, boundary)
        targets = list(self._known.targets.all())
        for target in targets:
            try:
                self._decide(target, loads, due, now_s)
            except ZeropullError as error:
                log.warning("target not decided", target=target.resource_id, error=error.reason)
        self._forget({target.key for target in targets})
        # Rows of minutes are written after the alarms were evaluated: every ten seconds.
        self._metrics.flush(only_seconds=not is_boundary)
        if now_s - self._rolled_up_s >= ROLL_UP_S:
            self._rolled_up_s = now_s
            self._metrics.roll_up(now_s)

    # ---------------------------------------------------------------------------------- deciding

    def _decide(
        self,
        target: ScalableTarget,
        loads: Loads,
        due: set[str],
        now_s: float,
    ) -> None:
        state = self._targets.get(target.key)
        if state is None:
            state = self._targets[target.key] = self._recalled(target, now_s)
        self._feed(target, state, loads)
        target = self._run_schedules(target, now_s)
        scaled = scaled_by(self._store, target)
        if scaled is None:
            return
        state.activities.follow(scaled, self._lacking(scaled), now_s)
        if self._keep_bounds(target, state, scaled, now_s):
            return
        policies = self._known.policies.under(f"{target.key}/")
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
        """When an alarm of one of the policies was evaluated. The others have their say too: a
        policy by the minute keeps one by ten seconds from scaling in between."""
        if not due:
            return
        proposals: list[Decision] = []
        alarms: dict[str, MetricAlarm] = {}
        is_due = False
        for policy in policies:
            found = self._proposal(target, state, policy, scaled, due, now_s)
            if found is None:
                continue
            is_due |= found.is_due
            alarm = found.alarm if found.is_due else None
            proposals.append(found.decision if found.is_due else found.as_vote(scaled.desired))
            if alarm is not None:
                alarms[policy.name] = alarm
        if not is_due:
            return
        decision = combine(
            proposals,
            capacity=scaled.desired,
            limits=_limits(target),
            last=_last_scaling(target),
            now_s=now_s,
        )
        state.decision, state.decided_s = decision, now_s
        if decision.not_scaled is not None and not alarms:
            return  # nothing is in ALARM: there was no attempt
        cause = _cause(decision, alarms)
        policy_of = {policy.name: policy for policy in policies}
        chosen = policy_of.get(decision.policy or "")
        self._carry_out(target, state, scaled, decision, cause, chosen, now_s)

    def _proposal(
        self,
        target: ScalableTarget,
        state: TargetState,
        policy: ScalingPolicy,
        scaled: Scaled,
        due: set[str],
        now_s: float,
    ) -> Proposal | None:
        """What the policy would do; None when it has nothing to say."""
        if policy.policy_type == "StepScaling":
            return self._step_proposal(target, policy, scaled, due, now_s)
        found = [self._known.alarms.get(alarm_key(policy.account, n)) for n in policy.alarms]
        alarms = [alarm for alarm in found if alarm is not None]
        if len(alarms) != 2:
            return None
        high, low = alarms
        spec = alarm_spec(high.request)
        series = spec.series(self._metrics, policy.account, self._evaluated_s)
        newest = max(series, default=None)
        decision = propose(
            tracking_policy(policy),
            high=AlarmState(high.state) if high.actions_enabled else AlarmState.OK,
            low=AlarmState(low.state) if low.actions_enabled else AlarmState.OK,
            metric=None if newest is None else series[newest],
            capacity=scaled.desired,
        )
        if newest is not None and newest < state.activities.changed_s():
            # Per unit of another capacity: the step would be computed from the wrong number.
            why = f"{decision.reason}; waiting for a reading of the new capacity"
            decision = Decision(scaled.desired, why, policy.name, NotScaled.COOLING_DOWN)
        alarming = high if high.state == AlarmState.ALARM else low
        is_due = any(alarm.key in due for alarm in alarms)
        return Proposal(decision, alarming if alarming.state == AlarmState.ALARM else None, is_due)

    def _step_proposal(
        self,
        target: ScalableTarget,
        policy: ScalingPolicy,
        scaled: Scaled,
        due: set[str],
        now_s: float,
    ) -> Proposal | None:
        for alarm in self._known.alarms.under(f"{policy.account}/"):
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
            # During the cooldown of a scale-out, what that one added counts as added already.
            cooling = _last_scaling(target).cooling_out(now_s)
            decision = propose_step(
                step_policy(policy),
                metric=float(aggregate(values[-spec.rule.evaluation_periods :])),
                threshold=spec.rule.threshold,
                capacity=min(target.out_from, scaled.desired) if cooling else scaled.desired,
            )
            if cooling and decision.desired <= scaled.desired:
                why = f"{decision.reason}; scaled out to {scaled.desired} already, cooling down"
                decision = Decision(scaled.desired, why, policy.name, NotScaled.COOLING_DOWN)
            return Proposal(decision, alarm, is_due=True)
        return None

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
        fleet = self._fleet(state, scaled, now_s)
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
            state.activities.note_not_scaled(target, decision.not_scaled, capacity, cause, now_s)
            return
        if decision.desired > capacity and (pause := state.activities.retry(now_s)) is not None:
            state.decision = _paused(decision, capacity, pause)
            return
        since_s = state.overload_since_s if decision.desired > capacity else None
        is_fast = self._mode(target) == "fast"
        if not self._change(scaled, decision, since_s, now_s, is_fast=is_fast):
            state.activities.note_not_scaled(target, NotScaled.UNSCALABLE, capacity, cause, now_s)
            return
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
            state.activities.begin(target, decision.desired, cause, now_s)
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

    def _keep_bounds(
        self, target: ScalableTarget, state: TargetState, scaled: Scaled, now_s: float
    ) -> bool:
        """Move a capacity that is outside of the target's bounds; True when it was."""
        allowed = _limits(target).clamp(scaled.desired)
        if allowed == scaled.desired:
            return False
        which = "minimum" if allowed > scaled.desired else "maximum"
        bound = target.minimum if allowed > scaled.desired else target.maximum
        cause = f"{which} capacity was set to {bound}"
        state.decision, state.decided_s = Decision(allowed, cause), now_s
        if allowed > scaled.desired and (pause := state.activities.retry(now_s)) is not None:
            state.decision = _paused(state.decision, scaled.desired, pause)
            return True
        if self._change(scaled, Decision(allowed, cause), None, now_s):
            state.activities.begin(target, allowed, cause, now_s)
            log.info("capacity moved into its bounds", target=target.resource_id, desired=allowed)
        return True

    def _run_schedules(self, target: ScalableTarget, now_s: float) -> ScalableTarget:
        """Carry out what is due, once however often it was missed; what was due last wins."""
        due: list[tuple[float, ScheduledAction]] = []
        for action in self._known.schedules.under(f"{target.key}/"):
            due_s = next_run(
                action.schedule, action.timezone, action.last_run_s, created_s=action.created_s
            )
            if due_s is not None and due_s <= now_s:
                due.append((due_s, action))
        for due_s, action in sorted(due, key=lambda each: (each[0], each[1].name)):
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

    # ------------------------------------------------------------------------------------ reading

    def _feed(
        self,
        target: ScalableTarget,
        state: TargetState,
        loads: Loads,
    ) -> None:
        for second, load in loads.get(_source_of(target), ()):
            if second > state.newest_second:
                state.window.add(second, load.load)
                state.newest, state.newest_second = load, second

    def _recalled(self, target: ScalableTarget, now_s: float) -> TargetState:
        """What a control plane that ran before knew of the target: its activities, and the load
        of the last 15 minutes from the metric's one-second points."""
        state = TargetState(ActivityLog(self._store, target))
        name = (
            "ConcurrentRequestsPerCopy"
            if target.dimension == COMPONENT_DIMENSION
            else "ConcurrentRequestsPerModel"
        )
        dimensions = _dimensions(target)
        key = MetricKey.of(target.account, SAGEMAKER, name, dimensions, "None")
        points = self._metrics.read(key, int(now_s) - PEAK_S, int(now_s), 1)
        for second, point in sorted(points.items()):
            state.window.add(second, point.total)  # one sample per copy: the sum is the load
            state.newest_second = second
            state.newest = LoadSecond(load=point.total, copies=int(point.count))
        return state

    def _lacking(self, scaled: Scaled) -> str:
        """Why the provider does not give an instance that is wanted; empty when it does."""
        if not scaled.is_in_progress:
            return ""
        instances = self._known.instances.grouped(scaled.endpoint_uid)
        return next((i.failure for i in instances if i.state is InstanceState.WANTED), "")

    def _fleet(self, state: TargetState, scaled: Scaled, now_s: float) -> Fleet:
        revision = self._store.revision_of(CopyRecord.kind, Instance.kind, Endpoint.kind)
        if state.units_revision != revision:
            state.units = scaled.units(self._store)
            state.units_revision = revision
        serving, began_s = state.units
        ready = min(serving, scaled.desired)
        startup_s = self._startup_s(scaled)
        waiting = max(0, scaled.desired - ready)
        newest = list(began_s)[-waiting:] if waiting else []
        began = newest + [now_s] * (waiting - len(newest))
        return Fleet(ready, tuple(max(now_s, at + startup_s) for at in began), startup_s)

    def _startup_s(self, scaled: Scaled) -> float:
        """The median of the newest launches: of new instances, or of the component's copies."""
        records = [
            record
            for record in self._known.timelines.grouped(scaled.endpoint_uid)
            if record.ready_s is not None
            and (
                record.new_instance
                if scaled.component is None
                else record.component == scaled.component
            )
        ]
        newest = sorted(records, key=lambda record: record.began_s)[-STARTS_REMEMBERED:]
        seconds = [record.ready_s - record.began_s for record in newest if record.ready_s]
        return statistics.median(seconds) if seconds else FIRST_GUESS_S

    def _mode(self, target: ScalableTarget) -> str:
        tags = self._known.tags.get(target.arn)
        tag = tags.tags.get(SCALING_TAG) if tags is not None else None
        return tag if tag in ("aws", "fast") else self._settings.mode

    def _publish_utilization(self, now_s: float) -> None:
        if now_s - self._utilized_s < UTILIZATION_S:
            return
        self._utilized_s = now_s
        for instance in self._known.instances.all():
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


def _dimensions(target: ScalableTarget) -> dict[str, str]:
    if target.dimension == COMPONENT_DIMENSION:
        return {"InferenceComponentName": component_of(target.resource_id)}
    endpoint, variant = target.endpoint_and_variant
    return {"EndpointName": endpoint, "VariantName": variant}


def _source_of(target: ScalableTarget) -> Source:
    if target.dimension == COMPONENT_DIMENSION:
        return (target.account, component_of(target.resource_id))
    return (target.account, *target.endpoint_and_variant)


def _by_source(loads: dict[tuple[Resource, int], LoadSecond]) -> Loads:
    found: Loads = {}
    for (resource, second), load in sorted(loads.items(), key=lambda each: each[0][1]):
        source: Source = (resource.account, resource.endpoint, resource.variant)
        if resource.component is not None:
            source = (resource.account, resource.component)
        found.setdefault(source, []).append((second, load))
    return found


def _paused(decision: Decision, capacity: int, pause: tuple[float, str]) -> Decision:
    left_s, message = pause
    why = f"{decision.reason}; the last attempt failed, next in {left_s:.0f} s: {message}"
    return Decision(capacity, why, decision.policy, NotScaled.NO_CAPACITY)


def _last_scaling(target: ScalableTarget) -> LastScaling:
    return LastScaling(
        target.out_at_s, target.out_from, target.out_to, target.out_cooldown_s,
        target.in_at_s, target.in_cooldown_s,
    )  # fmt: skip


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
