"""The stored documents that every second of scaling is decided from, kept in memory."""

from __future__ import annotations

import statistics

from zeropull.resources.alarms import MetricAlarm
from zeropull.resources.components import InferenceComponent
from zeropull.resources.endpoints import Endpoint
from zeropull.resources.instances import CopyRecord, Instance, InstanceState, TimelineRecord
from zeropull.resources.scaling import ScalableTarget, ScalingPolicy, ScheduledAction, mode_of
from zeropull.resources.tags import ResourceTags
from zeropull.statestore import Store
from zeropull.statestore.cached_kind import CachedKind

STARTS_REMEMBERED = 10
FIRST_GUESS_S = 60.0


class ScalingDocuments:
    """Every answer is the store's newest; nothing is written."""

    def __init__(self, store: Store, mode: str) -> None:
        """`mode`: of targets whose tags do not say it."""
        self._mode = mode
        self.targets = CachedKind(store, ScalableTarget)
        self.policies = CachedKind(store, ScalingPolicy)
        self.schedules = CachedKind(store, ScheduledAction)
        self.alarms = CachedKind(store, MetricAlarm)
        self.tags = CachedKind(store, ResourceTags)
        self.endpoints = CachedKind(store, Endpoint)
        self.components = CachedKind(store, InferenceComponent)
        self.copies = CachedKind(store, CopyRecord, lambda each: each.endpoint_uid)
        self.instances = CachedKind(store, Instance, lambda each: each.endpoint_uid)
        self.timelines = CachedKind(store, TimelineRecord, lambda each: each.endpoint_uid)

    def mode(self, target: ScalableTarget) -> str:
        """How it is decided for: "aws" or "fast"."""
        tags = self.tags.get(target.arn)
        return mode_of(tags.tags if tags is not None else {}, self._mode)

    def lacking(self, endpoint_uid: str) -> str:
        """Why the provider does not give an instance that is wanted; empty when it does."""
        instances = self.instances.grouped(endpoint_uid)
        return next((i.failure for i in instances if i.state is InstanceState.WANTED), "")

    def startup_s(self, endpoint_uid: str, component: str | None) -> float:
        """The median of the newest launches: of new instances, or of the component's copies."""
        records = [
            record
            for record in self.timelines.grouped(endpoint_uid)
            if record.ready_s is not None
            and (record.new_instance if component is None else record.component == component)
        ]
        newest = sorted(records, key=lambda record: record.began_s)[-STARTS_REMEMBERED:]
        seconds = [record.ready_s - record.began_s for record in newest if record.ready_s]
        return statistics.median(seconds) if seconds else FIRST_GUESS_S
