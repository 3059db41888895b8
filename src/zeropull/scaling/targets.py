"""What scaling decisions are made from: documents, the load second by second, what is starting."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from zeropull.autoscaler.combining import LastScaling
from zeropull.autoscaler.fast import Fleet
from zeropull.autoscaler.load_window import PEAK_S, SETTLE_S, LoadWindow
from zeropull.autoscaler.readings import Decision, Limits
from zeropull.metricstore.scaling_metrics import SAGEMAKER
from zeropull.metricstore.store import MetricKey, MetricStore
from zeropull.resources.alarms import MetricAlarm
from zeropull.resources.endpoints import Endpoint
from zeropull.resources.instances import CopyRecord, Instance, InstanceState, TimelineRecord
from zeropull.resources.scaling import (
    COMPONENT_DIMENSION,
    ScalableTarget,
    ScalingPolicy,
    ScheduledAction,
    component_of,
    mode_of,
)
from zeropull.resources.tags import ResourceTags
from zeropull.scaling.activities import ActivityLog
from zeropull.scaling.capacity import Scaled
from zeropull.scaling.metrics import LoadSecond, Resource
from zeropull.statestore import Store
from zeropull.statestore.cached_kind import CachedKind

STARTS_REMEMBERED = 10
FIRST_GUESS_S = 60.0

Source = tuple[str, ...]
"""Account and component, or account, endpoint and variant."""
Loads = dict[Source, list[tuple[int, LoadSecond]]]


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

    def feed(self, loads: Iterable[tuple[int, LoadSecond]]) -> None:
        """Seconds in order; one that has been seen is not counted again."""
        for second, load in loads:
            if second > self.newest_second:
                self.window.add(second, load.load)
                self.newest, self.newest_second = load, second


class ScalingView:
    """The documents that every second is decided from, and what is remembered of each target."""

    def __init__(self, store: Store, metrics: MetricStore, mode: str) -> None:
        """`mode`: of targets whose tags do not say it."""
        self._store = store
        self._metrics = metrics
        self._mode = mode
        self._states: dict[str, TargetState] = {}
        self.targets = CachedKind(store, ScalableTarget)
        self.policies = CachedKind(store, ScalingPolicy)
        self.schedules = CachedKind(store, ScheduledAction)
        self.alarms = CachedKind(store, MetricAlarm)
        self.tags = CachedKind(store, ResourceTags)
        self.instances = CachedKind(store, Instance, lambda each: each.endpoint_uid)
        self.timelines = CachedKind(store, TimelineRecord, lambda each: each.endpoint_uid)

    def state(self, target: ScalableTarget, now_s: float) -> TargetState:
        """Read again from the stores when it is not in memory."""
        state = self._states.get(target.key)
        if state is None:
            state = self._states[target.key] = self._recalled(target, now_s)
        return state

    def known_state(self, target: ScalableTarget) -> TargetState | None:
        return self._states.get(target.key)

    def mode(self, target: ScalableTarget) -> str:
        """How it is decided for: "aws" or "fast"."""
        tags = self.tags.get(target.arn)
        return mode_of(tags.tags if tags is not None else {}, self._mode)

    def forget_others(self, known: set[str]) -> None:
        for key in self._states.keys() - known:
            del self._states[key]

    def lacking(self, scaled: Scaled) -> str:
        """Why the provider does not give an instance that is wanted; empty when it does."""
        if not scaled.is_in_progress:
            return ""
        instances = self.instances.grouped(scaled.endpoint_uid)
        return next((i.failure for i in instances if i.state is InstanceState.WANTED), "")

    def fleet(self, state: TargetState, scaled: Scaled, now_s: float) -> Fleet:
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

    def _recalled(self, target: ScalableTarget, now_s: float) -> TargetState:
        """What a control plane that ran before knew of the target: its activities, and the load
        of the last 16 minutes from the metric's one-second points."""
        state = TargetState(ActivityLog(self._store, target))
        name = (
            "ConcurrentRequestsPerCopy"
            if target.dimension == COMPONENT_DIMENSION
            else "ConcurrentRequestsPerModel"
        )
        dimensions = _dimensions(target)
        key = MetricKey.of(target.account, SAGEMAKER, name, dimensions, "None")
        points = self._metrics.read(key, int(now_s) - PEAK_S - SETTLE_S, int(now_s), 1)
        for second, point in sorted(points.items()):
            state.window.add(second, point.total)  # one sample per copy: the sum is the load
            state.newest_second = second
            state.newest = LoadSecond(load=point.total, copies=int(point.count))
        return state

    def _startup_s(self, scaled: Scaled) -> float:
        """The median of the newest launches: of new instances, or of the component's copies."""
        records = [
            record
            for record in self.timelines.grouped(scaled.endpoint_uid)
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


def source_of(target: ScalableTarget) -> Source:
    if target.dimension == COMPONENT_DIMENSION:
        return (target.account, component_of(target.resource_id))
    return (target.account, *target.endpoint_and_variant)


def by_source(loads: dict[tuple[Resource, int], LoadSecond]) -> Loads:
    found: Loads = {}
    for (resource, second), load in sorted(loads.items(), key=lambda each: each[0][1]):
        source: Source = (resource.account, resource.endpoint, resource.variant)
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


def _dimensions(target: ScalableTarget) -> dict[str, str]:
    if target.dimension == COMPONENT_DIMENSION:
        return {"InferenceComponentName": component_of(target.resource_id)}
    endpoint, variant = target.endpoint_and_variant
    return {"EndpointName": endpoint, "VariantName": variant}
