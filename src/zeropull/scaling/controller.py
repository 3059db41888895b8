"""Application Auto Scaling's own loop: readings -> metrics -> alarms -> decisions -> capacity.

A target decides as AWS documents it (`aws`), or every second from exact counts (`fast`, chosen by
the tag `zeropull:scaling` on the scalable target or by the settings). Deciding is
`zeropull.autoscaler`; here the state is read, the decision written down and the capacity changed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

from zeropull.autoscaler.alarms import AlarmState
from zeropull.autoscaler.combining import combine
from zeropull.autoscaler.fast import FastPolicy, decide_fast
from zeropull.autoscaler.load_window import PEAK_S
from zeropull.autoscaler.readings import Decision, NotScaled
from zeropull.controlapi.exchange import Exchange
from zeropull.errors import ZeropullError
from zeropull.metricstore.scaling_metrics import concurrency_target, tracking_policy
from zeropull.metricstore.store import MetricStore
from zeropull.resources.alarms import MetricAlarm
from zeropull.resources.scaling import ScalableTarget, ScalingPolicy
from zeropull.resources.settings import ScalingSettings
from zeropull.scaling.alarms import alarms_evaluated
from zeropull.scaling.capacity import Scaled, scaled_by
from zeropull.scaling.changes import CapacityChanges
from zeropull.scaling.metrics import half_loads, publish_readings, publish_utilization
from zeropull.scaling.proposals import Evaluated, PolicyProposals
from zeropull.scaling.targets import (
    Loads,
    ScalingView,
    TargetState,
    by_source,
    last_scaling,
    limits_of,
    source_of,
)
from zeropull.scaling.waking import ComponentWaker, waiting_requests
from zeropull.statestore import Store
from zeropull.telemetry import get_logger

TICK_S = 0.5
REPORT_LAG_S = 0.1
"""After each whole and half second: the gateways have reported it by then."""
READINGS_DELAY_S = 1
"""Alarms are evaluated this long after a period has ended, so that its readings are in."""
SLICE_S = 0.01
"""How long a tick may keep the event loop before others get their turn."""
UTILIZATION_S = 60
ROLL_UP_S = 3600

log = get_logger(__name__)


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
        self._clock = clock
        self._view = ScalingView(store, metrics, settings.mode)
        self._proposals = PolicyProposals(self._view, metrics)
        self._changes = CapacityChanges(store, self._view)
        self._waker = ComponentWaker(store, self._view)
        self._looked_s = clock()
        self._evaluated_s = 0
        self._utilized_s = 0.0
        self._rolled_up_s = 0.0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tick_forever())
            tasks.create_task(self._wake_forever())

    async def _wake_forever(self) -> None:
        """A request that begins to wait for a component without copies is not left until the next
        half second."""
        while True:
            await self._exchange.held.wait()
            self._exchange.held.clear()
            try:
                self.wake_components()
            except ZeropullError as error:
                log.error("components not woken", error=error.reason)

    async def _tick_forever(self) -> None:
        while True:
            now_s = self._clock()
            next_s = (int((now_s - REPORT_LAG_S) // TICK_S) + 1) * TICK_S
            await asyncio.sleep(next_s + REPORT_LAG_S - now_s)
            try:
                self.wake_components()
                if next_s % 1.0:
                    self.half_tick()
                else:
                    await self._tick_in_slices()
            except ZeropullError as error:
                log.error("scaling round failed", error=error.reason)

    def decisions(self) -> dict[str, tuple[str, float, Decision]]:
        """By target key: how it is decided for, when it last was, and the decision."""
        found: dict[str, tuple[str, float, Decision]] = {}
        for stored in self._store.select(ScalableTarget):
            state = self._view.known_state(stored.document)
            if state is not None and state.decision is not None:
                mode = self._view.mode(stored.document)
                found[stored.document.key] = (mode, state.decided_s, state.decision)
        return found

    def wake_components(self) -> None:
        """Start the first copy of the components for which requests wait."""
        reports = (received.report for received in self._exchange.gateways.values())
        self._waker.wake(waiting_requests(reports), self._clock())

    def tick(self) -> None:
        """One second."""
        for _ in self._steps():
            pass

    async def _tick_in_slices(self) -> None:
        """One second, letting others run whenever it has taken a while: every ten seconds all
        alarms are evaluated, and requests for routes or operations should not wait for that."""
        began_s = time.monotonic()
        for _ in self._steps():
            if time.monotonic() - began_s >= SLICE_S:
                await asyncio.sleep(0)
                began_s = time.monotonic()

    def _steps(self) -> Iterator[None]:
        """The parts of a tick. None awaits, so that nothing changes under the feet of one; every
        one reads its documents itself, as they may have changed since the last."""
        now_s = self._clock()
        loads = by_source(publish_readings(self._metrics, self._exchange.take_readings()))
        yield
        self._publish_utilization(now_s)
        yield
        boundary = int((now_s - READINGS_DELAY_S) // 10) * 10
        due = self._alarms_set(now_s)
        is_boundary = boundary > self._evaluated_s
        if is_boundary:
            self._evaluated_s = boundary
            yield from alarms_evaluated(self._store, self._metrics, boundary, due)
        keys = [target.key for target in self._view.targets.all()]
        for key in keys:
            target = self._view.targets.get(key)
            if target is None:
                continue  # deregistered since
            try:
                self._decide(target, loads, due, now_s)
            except ZeropullError as error:
                log.warning("target not decided", target=target.resource_id, error=error.reason)
            yield
        self._view.forget_others(set(keys))
        # Rows of minutes are written after the alarms were evaluated: every ten seconds.
        self._metrics.flush(only_seconds=not is_boundary)
        if now_s - self._rolled_up_s >= ROLL_UP_S:
            self._rolled_up_s = now_s
            self._metrics.roll_up(now_s)

    def _alarms_set(self, now_s: float) -> set[str]:
        """Keys of the alarms that users have put into ALARM since the last call: their actions are
        carried out before the next evaluation, which mostly changes the state again."""
        since_s, self._looked_s = self._looked_s, now_s
        return {
            alarm.key
            for alarm in self._view.alarms.all()
            if alarm.set_s >= since_s
            and alarm.set_s == alarm.state_transitioned_s
            and alarm.state == AlarmState.ALARM
        }

    def half_tick(self) -> None:
        """Half a second later: only the fast mode, of what had requests meanwhile."""
        now_s = self._clock()
        loads = by_source(half_loads(self._exchange.take_halves()))
        for target in self._view.targets.all() if loads else ():
            state = self._view.known_state(target)
            seen = loads.get(source_of(target))
            if state is None or not seen or self._view.mode(target) != "fast":
                continue
            second, load = seen[-1]
            state.window.add_half(second, load.load)
            scaled = scaled_by(self._store, target)
            if scaled is None or limits_of(target).clamp(scaled.desired) != scaled.desired:
                continue
            policies = self._view.policies.under(f"{target.key}/")
            try:
                self._decide_fast(target, state, scaled, policies, now_s, load.queue_age_s)
            except ZeropullError as error:
                log.warning("target not decided", target=target.resource_id, error=error.reason)

    def _decide(
        self,
        target: ScalableTarget,
        loads: Loads,
        due: set[str],
        now_s: float,
    ) -> None:
        state = self._view.state(target, now_s)
        state.feed(loads.get(source_of(target), ()))
        target = self._changes.run_schedules(target, state, now_s)
        scaled = scaled_by(self._store, target)
        if scaled is None:
            return
        state.activities.follow(scaled, self._view.lacking(scaled), now_s)
        if self._changes.keep_bounds(target, state, scaled, now_s):
            return
        policies = self._view.policies.under(f"{target.key}/")
        if self._view.mode(target) == "fast":
            self._decide_fast(target, state, scaled, policies, now_s, state.newest.queue_age_s)
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
        """When an alarm of one of the policies was evaluated, or set by its user. The others have
        their say too: a policy by the minute keeps one by ten seconds from scaling in between."""
        if not due:
            return
        evaluated = Evaluated(due, self._evaluated_s)
        proposals: list[Decision] = []
        alarms: dict[str, MetricAlarm] = {}
        is_due = False
        for policy in policies:
            found = self._proposals.of(target, state, policy, scaled, evaluated, now_s)
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
            target, state, scaled, decision, cause, chosen, now_s, is_fast=False
        )

    def _decide_fast(
        self,
        target: ScalableTarget,
        state: TargetState,
        scaled: Scaled,
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
        fleet = self._view.fleet(state, scaled, now_s)
        sustained = state.window.sustained(1)
        overloaded = sustained is not None and sustained > fleet.ready * goal
        if not overloaded:
            state.overload_since_s = None
        elif state.overload_since_s is None:
            state.overload_since_s = float(state.newest_second) + state.window.ends_in_half
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
        if decision.desired > scaled.desired or decision.not_scaled is NotScaled.AT_MAXIMUM:
            state.wanted_more_s = now_s
        if not _is_attempt(decision, state.wanted_more_s, now_s):
            return
        cause = f"policy {policy.name} in the fast mode: {decision.reason}"
        self._changes.carry_out(target, state, scaled, decision, cause, policy, now_s, is_fast=True)

    def _publish_utilization(self, now_s: float) -> None:
        if now_s - self._utilized_s < UTILIZATION_S:
            return
        self._utilized_s = now_s
        for instance in self._view.instances.all():
            received = self._exchange.nodes.get(instance.instance_id)
            if received is not None and now_s - received.received_s < UTILIZATION_S:
                publish_utilization(
                    self._metrics,
                    received.report,
                    instance.account,
                    instance.endpoint,
                    instance.variant,
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
