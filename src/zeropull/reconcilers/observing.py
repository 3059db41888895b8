"""Observes one endpoint: reads its documents and folds what engine and gateways say into them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from zeropull.reconcilers.endpoint_view import Gateways, View
from zeropull.reconcilers.engine import Engine, Observed
from zeropull.reconcilers.folding import fold_copy, fold_timeline, lost_reason, surplus_timelines
from zeropull.reconcilers.resolving import Resolver
from zeropull.reconcilers.rollback_alarms import rollback_alarms
from zeropull.reconcilers.sweeping import Sweeper
from zeropull.resources.components import InferenceComponent
from zeropull.resources.endpoints import Endpoint
from zeropull.resources.instances import CopyRecord, Instance, TimelineRecord
from zeropull.resources.settings import EndpointSettings
from zeropull.statestore import Store


class Observer:
    """`has_cache`: whether files of an endpoint's image cache are left, by its uid."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        sweeper: Sweeper,
        resolver: Resolver,
        has_cache: Callable[[str], bool],
        settings: EndpointSettings,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._engine = engine
        self._sweeper = sweeper
        self._resolver = resolver
        self._has_cache = has_cache
        self._settings = settings
        self._started_s = clock()
        self._unhealthy_since_s: dict[str, float] = {}

    def observe(self, endpoint: Endpoint, gateways: Gateways, now_s: float) -> View:
        """The endpoint as it is now. What is new about its copies is written down."""
        uid = endpoint.uid
        instances = tuple(s.document for s in self._store.select(Instance, endpoint_uid=uid))
        components = tuple(
            s.document for s in self._store.select(InferenceComponent, endpoint_uid=uid)
        )
        seen = {
            i.instance_id: observed
            for i in instances
            if (observed := self._engine.observe(i.instance_id)) is not None
        }
        with self._store.transaction():
            copies = self._fold_copies(uid, seen, gateways)
            timelines = self._fold_timelines(uid, instances, copies, seen, gateways)
        self._note_unhealthy(copies, now_s)
        return View(
            endpoint,
            instances=instances,
            copies=tuple(copies),
            timelines=tuple(timelines),
            gateways=gateways,
            lost=self._lost(instances, seen, now_s),
            unhealthy_since_s={
                c.copy_id: self._unhealthy_since_s[c.copy_id]
                for c in copies
                if c.copy_id in self._unhealthy_since_s
            },
            resolve_failures=self._resolver.failures,
            stopped=frozenset().union(*(each.stopped for each in seen.values())),
            has_cache=self._has_cache(uid),
            alarms=rollback_alarms(self._store, endpoint, components),
            components=components,
            cached={instance_id: each.images for instance_id, each in seen.items()},
        )

    def forget_all_but(self, copy_ids: Collection[str]) -> None:
        for copy_id in self._unhealthy_since_s.keys() - set(copy_ids):
            del self._unhealthy_since_s[copy_id]

    def _fold_copies(
        self, uid: str, seen: dict[str, Observed], gateways: Gateways
    ) -> list[CopyRecord]:
        copies = []
        for stored in self._store.select(CopyRecord, endpoint_uid=uid):
            copy = stored.document
            observed = seen.get(copy.instance_id)
            report = observed.copies.get(copy.copy_id) if observed else None
            if report is not None:
                copy = fold_copy(copy, report)
            if copy.routed_s is None and copy.copy_id in gateways.routed_s:
                copy = replace(copy, routed_s=gateways.routed_s[copy.copy_id])
            if copy != stored.document:
                self._store.put(copy)
            copies.append(copy)
        return copies

    def _fold_timelines(
        self,
        uid: str,
        instances: tuple[Instance, ...],
        copies: list[CopyRecord],
        seen: dict[str, Observed],
        gateways: Gateways,
    ) -> list[TimelineRecord]:
        by_instance = {i.instance_id: i for i in instances}
        by_copy = {c.copy_id: c for c in copies}
        records = []
        for stored in self._store.select(TimelineRecord, endpoint_uid=uid):
            record = stored.document
            copy = by_copy.get(record.copy_id)
            if record.ended_s is None and copy is not None:
                observed = seen.get(copy.instance_id)
                report = observed.copies.get(copy.copy_id) if observed else None
                instance = by_instance.get(record.instance_id)
                record = fold_timeline(record, instance, copy, report, gateways)
                if record != stored.document:
                    self._store.put(record)
            records.append(record)
        for old in surplus_timelines(records, self._settings.timeline_launches):
            self._store.delete(TimelineRecord, old.copy_id)
            records.remove(old)
        return records

    def _note_unhealthy(self, copies: list[CopyRecord], now_s: float) -> None:
        for copy in copies:
            if copy.state == "healthy" or copy.healthy_s is None:
                self._unhealthy_since_s.pop(copy.copy_id, None)
            else:
                self._unhealthy_since_s.setdefault(copy.copy_id, now_s)

    def _lost(
        self, instances: tuple[Instance, ...], seen: dict[str, Observed], now_s: float
    ) -> dict[str, str]:
        lost = {}
        for instance in instances:
            observed = seen.get(instance.instance_id)
            reason = lost_reason(
                instance,
                observed.heard_s if observed else None,
                is_there=self._sweeper.is_there(instance),
                started_s=self._started_s,
                now_s=now_s,
                settings=self._settings,
            )
            if reason is not None:
                lost[instance.instance_id] = reason
        return lost
