"""What each policy of a scalable target would do, as AWS documents it, from its alarms."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass

from zeropull.autoscaler.alarms import AlarmState
from zeropull.autoscaler.readings import Decision, NotScaled
from zeropull.autoscaler.step_scaling import propose_step
from zeropull.autoscaler.target_tracking import propose
from zeropull.metricstore.alarm_specs import alarm_spec
from zeropull.metricstore.scaling_metrics import step_policy, tracking_policy
from zeropull.metricstore.store import MetricStore
from zeropull.resources.alarms import MetricAlarm, alarm_key
from zeropull.resources.scaling import ScalableTarget, ScalingPolicy
from zeropull.scaling.capacity import Capacity
from zeropull.scaling.documents import ScalingDocuments
from zeropull.scaling.targets import TargetState, last_scaling


@dataclass(frozen=True, slots=True)
class Proposal:
    """What one policy would do, the alarm in ALARM that asks for it, and whether one of its alarms
    was evaluated just now: only then may it begin something."""

    decision: Decision
    alarm: MetricAlarm | None
    is_due: bool

    def as_vote(self, desired: int) -> Decision:
        """Its say in a scale-in that another policy begins."""
        if self.decision.desired <= desired:
            return self.decision
        why = "its alarm is evaluated later"
        return Decision(desired, why, self.decision.policy, NotScaled.WITHIN_TARGET)


@dataclass(frozen=True, slots=True)
class EvaluatedAlarms:
    """The alarms that were evaluated just now, by key, and up to which second."""

    due: set[str]
    at_s: int


class PolicyProposals:
    """Reads alarms and their metrics; changes nothing."""

    def __init__(self, documents: ScalingDocuments, metrics: MetricStore) -> None:
        self._documents = documents
        self._metrics = metrics

    def of(
        self,
        target: ScalableTarget,
        state: TargetState,
        policy: ScalingPolicy,
        capacity: Capacity,
        evaluated: EvaluatedAlarms,
        now_s: float,
    ) -> Proposal | None:
        """What the policy would do; None when it has nothing to say."""
        if policy.policy_type == "StepScaling":
            return self._step_proposal(target, policy, capacity, evaluated, now_s)
        found = [self._documents.alarms.get(alarm_key(policy.account, n)) for n in policy.alarms]
        alarms = [alarm for alarm in found if alarm is not None]
        if len(alarms) != 2:
            return None
        high, low = alarms
        alarming = high if high.state == AlarmState.ALARM else low
        told = told_datapoints(alarming)
        spec = alarm_spec(high.request)
        series = spec.series(self._metrics, policy.account, evaluated.at_s)
        newest = max(series, default=None)
        read = None if newest is None else series[newest]
        decision = propose(
            tracking_policy(policy),
            high=AlarmState(high.state) if high.actions_enabled else AlarmState.OK,
            low=AlarmState(low.state) if low.actions_enabled else AlarmState.OK,
            metric=told[-1] if told else read,
            capacity=capacity.desired,
        )
        if not told and newest is not None and newest < state.activities.changed_s():
            # Per unit of another capacity: the step would be computed from the wrong number.
            why = f"{decision.reason}; waiting for a reading of the new capacity"
            decision = Decision(capacity.desired, why, policy.name, NotScaled.COOLING_DOWN)
        is_due = any(alarm.key in evaluated.due for alarm in alarms)
        return Proposal(decision, alarming if alarming.state == AlarmState.ALARM else None, is_due)

    def _step_proposal(
        self,
        target: ScalableTarget,
        policy: ScalingPolicy,
        capacity: Capacity,
        evaluated: EvaluatedAlarms,
        now_s: float,
    ) -> Proposal | None:
        for alarm in self._documents.alarms.under(f"{policy.account}/"):
            if alarm.key not in evaluated.due or policy.arn not in (
                alarm.request.get("AlarmActions") or []
            ):
                continue
            if alarm.state != AlarmState.ALARM or not alarm.actions_enabled:
                continue
            spec = alarm_spec(alarm.request)
            series = spec.series(self._metrics, policy.account, evaluated.at_s)
            values = told_datapoints(alarm) or list(series.values())
            if not values:
                continue
            config = policy.request["StepScalingPolicyConfiguration"]
            how = config.get("MetricAggregationType", "Average")
            aggregate = {"Minimum": min, "Maximum": max}.get(how, statistics.fmean)
            # During the cooldown of a scale-out, what that one added counts as added already.
            cooling = last_scaling(target).cooling_out(now_s)
            decision = propose_step(
                step_policy(policy),
                metric=float(aggregate(values[-spec.rule.evaluation_periods :])),
                threshold=spec.rule.threshold,
                capacity=min(target.out_from, capacity.desired) if cooling else capacity.desired,
            )
            if cooling and decision.desired <= capacity.desired:
                why = f"{decision.reason}; scaled out to {capacity.desired} already, cooling down"
                decision = Decision(capacity.desired, why, policy.name, NotScaled.COOLING_DOWN)
            return Proposal(decision, alarm, is_due=True)
        return None


def told_datapoints(alarm: MetricAlarm) -> list[float]:
    """Those that a user has given with SetAlarmState, the newest last: policies act on them.

    Source: CloudWatch API reference, SetAlarmState, StateReasonData (its `recentDatapoints`).
    """
    if not alarm.set_s or alarm.state != AlarmState.ALARM:
        return []
    try:
        data = json.loads(alarm.state_reason_data or "null")
    except ValueError:
        return []
    found = data.get("recentDatapoints") if isinstance(data, dict) else None
    if not isinstance(found, list):
        return []
    return [float(each) for each in found if isinstance(each, int | float) and math.isfinite(each)]
