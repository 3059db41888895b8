"""What is remembered of each scalable target: its load by the second, what is starting, why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from zeropull.autoscaler.combining import LastScaling
from zeropull.autoscaler.fast import Fleet
from zeropull.autoscaler.load_window import PEAK_S, SETTLE_S, LoadWindow
from zeropull.autoscaler.readings import Decision, Limits
from zeropull.autoscaler.schedules import next_run
from zeropull.metricstore.scaling_metrics import SAGEMAKER
from zeropull.metricstore.store import MetricKey, MetricStore
from zeropull.resources.endpoints import Endpoint
from zeropull.resources.instances import CopyRecord, Instance
from zeropull.resources.scaling import (
    COMPONENT_DIMENSION,
    LoadSource,
    ScalableTarget,
    ScheduledAction,
)
from zeropull.scaling.activities import ActivityLog
from zeropull.scaling.capacity import Capacity
from zeropull.scaling.documents import ScalingDocuments
from zeropull.scaling.metrics import LoadSecond, Resource
from zeropull.statestore import Store
from zeropull.telemetry import get_logger

log = get_logger(__name__)

Loads = dict[LoadSource, list[tuple[int, LoadSecond]]]


@dataclass(slots=True)
class TargetState:
    """What is kept in memory of one target; all of it can be read again from the stores, but for
    when the fast mode last wanted more than there was, which only spares an activity."""

    activities: ActivityLog
    window: LoadWindow = field(default_factory=LoadWindow)
    newest: LoadSecond = field(default_factory=LoadSecond)
    newest_second: int = 0
    decision: Decision | None = None
    decided_s: float = 0.0
    overload_since_s: float | None = None
    wanted_more_s: float = -math.inf
    units: tuple[int, Sequence[float]] = (0, ())
    units_revision: int = -1
    schedules: dict[str, tuple[ScheduledAction, float | None]] = field(default_factory=dict)

    def feed(self, loads: Iterable[tuple[int, LoadSecond]]) -> None:
        """Seconds in order; one that has been seen is not counted again."""
        for second, load in loads:
            if second > self.newest_second:
                self.window.add(second, load.load)
                self.newest, self.newest_second = load, second

    def due_s(self, action: ScheduledAction) -> float | None:
        """When the action is to run next; None = never again. Computed once for every run."""
        known = self.schedules.get(action.name)
        if known is None or known[0] is not action:
            due_s = next_run(
                action.schedule, action.timezone, action.last_run_s, created_s=action.created_s
            )
            known = self.schedules[action.name] = (action, due_s)
        return known[1]

    def note_overload(self, most: float) -> None:
        """Remember since when the load has been above `most`, what the serving capacity takes."""
        sustained = self.window.sustained(1)
        if sustained is None or sustained <= most:
            self.overload_since_s = None
        elif self.overload_since_s is None:
            self.overload_since_s = float(self.newest_second) + self.window.ends_in_half


class TargetStates:
    """What is remembered of each target."""

    def __init__(self, store: Store, metrics: MetricStore, documents: ScalingDocuments) -> None:
        self._store = store
        self._metrics = metrics
        self._documents = documents
        self._states: dict[str, TargetState] = {}

    def of(self, target: ScalableTarget, now_s: float) -> TargetState:
        """Read again from the stores when it is not in memory."""
        state = self._states.get(target.key)
        if state is None:
            state = self._states[target.key] = self._recalled(target, now_s)
        return state

    def known(self, target: ScalableTarget) -> TargetState | None:
        return self._states.get(target.key)

    def forget_others(self, known: set[str]) -> None:
        for key in self._states.keys() - known:
            del self._states[key]

    def fleet(self, state: TargetState, capacity: Capacity, now_s: float) -> Fleet:
        revision = self._store.revision_of(CopyRecord.kind, Instance.kind, Endpoint.kind)
        if state.units_revision != revision:
            state.units = capacity.units(self._documents)
            state.units_revision = revision
        serving, began_s = state.units
        ready = min(serving, capacity.desired)
        startup_s = self._documents.startup_s(capacity.endpoint_uid, capacity.component)
        waiting = max(0, capacity.desired - ready)
        newest = list(began_s)[-waiting:] if waiting else []
        began = newest + [now_s] * (waiting - len(newest))
        return Fleet(ready, tuple(max(now_s, at + startup_s) for at in began), startup_s)

    def _recalled(self, target: ScalableTarget, now_s: float) -> TargetState:
        """What a control plane that ran before knew of the target: its activities, and the load
        of the last 16 minutes from the metric's one-second points."""
        state = TargetState(ActivityLog(self._store, target))
        name = (
            "ConcurrentRequestsPerCopy"
            if target.dimension == COMPONENT_DIMENSION
            else "ConcurrentRequestsPerModel"
        )
        dimensions = target.metric_dimensions
        key = MetricKey.of(target.account, SAGEMAKER, name, dimensions, "None")
        try:
            points = self._metrics.read(key, int(now_s) - PEAK_S - SETTLE_S, int(now_s), 1)
        except Exception as error:  # readings only: bounds and alarms count without them
            log.error("load not recalled", target=target.resource_id, error=str(error))
            points = {}
        for second, point in sorted(points.items()):
            state.window.add(second, point.total)  # one sample per copy: the sum is the load
            state.newest_second = second
            state.newest = LoadSecond(load=point.total, copies=int(point.count))
        return state


def loads_by_source(loads: dict[tuple[Resource, int], LoadSecond]) -> Loads:
    found: Loads = {}
    for (resource, second), load in sorted(loads.items(), key=lambda each: each[0][1]):
        source: LoadSource = (resource.account, resource.endpoint, resource.variant)
        if resource.component is not None:
            source = (resource.account, resource.component)
        found.setdefault(source, []).append((second, load))
    return found


def limits_of(target: ScalableTarget) -> Limits:
    return Limits(
        target.minimum, target.maximum, target.scale_out_suspended, target.scale_in_suspended
    )


def last_scaling(target: ScalableTarget) -> LastScaling:
    return LastScaling(
        target.out_at_s, target.out_from, target.out_to, target.out_cooldown_s,
        target.in_at_s, target.in_cooldown_s, target.in_from,
    )  # fmt: skip
