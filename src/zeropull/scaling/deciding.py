"""What one scalable target should have now: as AWS documents it (`aws`), or from exact counts every
half second (`fast`). Deciding is `zeropull.autoscaler`; here its inputs are read, and what it says
is carried out."""

from __future__ import annotations

from typing import NamedTuple

from zeropull.autoscaler.combining import combine
from zeropull.autoscaler.fast import FastPolicy, decide_fast
from zeropull.autoscaler.load_window import PEAK_S
from zeropull.autoscaler.readings import Decision, NotScaled
from zeropull.metricstore.scaling_metrics import concurrency_target, tracking_policy
from zeropull.metricstore.store import MetricStore
from zeropull.resources.alarms import MetricAlarm
from zeropull.resources.scaling import ScalableTarget, ScalingPolicy
from zeropull.scaling.capacity import Capacity, capacity_of
from zeropull.scaling.changes import CapacityChanges
from zeropull.scaling.documents import ScalingDocuments
from zeropull.scaling.metrics import LoadSecond
from zeropull.scaling.proposals import EvaluatedAlarms, PolicyProposals
from zeropull.scaling.targets import Loads, TargetState, TargetStates, last_scaling, limits_of
from zeropull.statestore import Store
from zeropull.telemetry import get_logger

log = get_logger(__name__)


class KnownDecision(NamedTuple):
    """How a target is decided for ("aws" or "fast"), and what was decided when."""

    mode: str
    decided_s: float
    decision: Decision


class TargetDecisions:
    """Decides for one target at a time and carries the decision out."""

    def __init__(
        self,
        store: Store,
        metrics: MetricStore,
        documents: ScalingDocuments,
        states: TargetStates,
    ) -> None:
        self._documents = documents
        self._states = states
        self._proposals = PolicyProposals(documents, metrics)
        self._changes = CapacityChanges(store, documents)

    def decide(
        self, target: ScalableTarget, loads: Loads, evaluated: EvaluatedAlarms, now_s: float
    ) -> None:
        """One second of one target."""
        state = self._states.of(target, now_s)
        state.feed(loads.get(target.load_source, ()))
        target = self._changes.run_schedules(target, state, now_s)
        capacity = capacity_of(self._documents, target)
        if capacity is None:
            return
        lacking = self._documents.lacking(capacity.endpoint_uid) if capacity.is_in_progress else ""
        state.activities.follow(capacity, lacking, now_s)
        if self._changes.keep_bounds(target, state, capacity, now_s):
            return
        policies = self._documents.policies.under(f"{target.key}/")
        if self._documents.mode(target) == "fast":
            self._decide_fast(target, state, capacity, policies, now_s, state.newest.queue_age_s)
        else:
            self._decide_as_aws(target, state, capacity, policies, evaluated, now_s)

    def decide_half(
        self, target: ScalableTarget, seen: tuple[int, LoadSecond], now_s: float
    ) -> None:
        """The fast mode, once the first half of a second has been `seen`."""
        state = self._states.known(target)
        if state is None or self._documents.mode(target) != "fast":
            return
        second, load = seen
        state.window.add_half(second, load.load)
        capacity = capacity_of(self._documents, target)
        if capacity is None or limits_of(target).clamp(capacity.desired) != capacity.desired:
            return
        policies = self._documents.policies.under(f"{target.key}/")
        self._decide_fast(target, state, capacity, policies, now_s, load.queue_age_s)

    def known(self) -> dict[str, KnownDecision]:
        """By target key, of the targets that have been decided for."""
        found: dict[str, KnownDecision] = {}
        for target in self._documents.targets.all():
            state = self._states.known(target)
            if state is not None and state.decision is not None:
                mode = self._documents.mode(target)
                found[target.key] = KnownDecision(mode, state.decided_s, state.decision)
        return found

    def _decide_as_aws(
        self,
        target: ScalableTarget,
        state: TargetState,
        capacity: Capacity,
        policies: list[ScalingPolicy],
        evaluated: EvaluatedAlarms,
        now_s: float,
    ) -> None:
        """When an alarm of one of the policies was evaluated, or set by its user. The others have
        their say too: a policy by the minute keeps one by ten seconds from scaling in between."""
        if not evaluated.due:
            return
        proposals: list[Decision] = []
        alarms: dict[str, MetricAlarm] = {}
        is_due = False
        for policy in policies:
            found = self._proposals.of(target, state, policy, capacity, evaluated, now_s)
            if found is None:
                continue
            is_due |= found.is_due
            alarm = found.alarm if found.is_due else None
            proposals.append(found.decision if found.is_due else found.as_vote(capacity.desired))
            if alarm is not None:
                alarms[policy.name] = alarm
        if not is_due:
            return
        decision = combine(
            proposals,
            capacity=capacity.desired,
            limits=limits_of(target),
            last=last_scaling(target),
            now_s=now_s,
        )
        state.decision, state.decided_s = decision, now_s
        if decision.not_scaled is not None and not alarms:
            return  # nothing is in ALARM: there was no attempt
        cause = _cause(decision, alarms)
        policy_of = {policy.name: policy for policy in policies}
        chosen = policy_of.get(decision.policy or "")
        self._changes.carry_out(
            target, state, capacity, decision, cause, chosen, now_s, is_fast=False
        )

    def _decide_fast(
        self,
        target: ScalableTarget,
        state: TargetState,
        capacity: Capacity,
        policies: list[ScalingPolicy],
        now_s: float,
        queue_age_s: float,
    ) -> None:
        tracked = [
            (policy, goal)
            for policy in policies
            if (goal := concurrency_target(policy)) is not None
        ]
        if not tracked:
            return
        policy, goal = min(tracked, key=lambda each: each[1])
        fleet = self._states.fleet(state, capacity, now_s)
        state.note_overload(fleet.ready * goal)
        decision = decide_fast(
            FastPolicy(policy.name, goal, tracking_policy(policy).scale_in_disabled),
            state.window,
            queue_age_s=queue_age_s,
            fleet=fleet,
            limits=limits_of(target),
            last=last_scaling(target),
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
        if decision.desired > capacity.desired or decision.not_scaled is NotScaled.AT_MAXIMUM:
            state.wanted_more_s = now_s
        if not _is_attempt(decision, state.wanted_more_s, now_s):
            return
        cause = f"policy {policy.name} in the fast mode: {decision.reason}"
        self._changes.carry_out(
            target, state, capacity, decision, cause, policy, now_s, is_fast=True
        )


def _is_attempt(decision: Decision, wanted_more_s: float, now_s: float) -> bool:
    """Whether the fast mode tried to change the capacity. To scale in, as with AWS's alarm, after
    15 minutes without wanting more: else bursts at a capacity that is both minimum and maximum
    would be two reasons in turn, and push all else out of the activities."""
    if decision.not_scaled is NotScaled.AT_MINIMUM:
        return now_s - wanted_more_s >= PEAK_S
    return decision.not_scaled in (None, NotScaled.AT_MAXIMUM)


def _cause(decision: Decision, alarms: dict[str, MetricAlarm]) -> str:
    alarm = alarms.get(decision.policy or "")
    if alarm is None:
        return decision.reason
    return f"monitor alarm {alarm.name} in state ALARM triggered policy {decision.policy}"
