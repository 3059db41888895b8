"""Observes one endpoint: reads its documents and folds what engine and gateways say into them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from zeropull.controlapi.messages import CopyState
from zeropull.reconcilers.endpoint_view import Gateways, View
from zeropull.reconcilers.engine import Engine, Observed
from zeropull.reconcilers.folding import fold_copy, fold_timeline, surplus_timelines
from zeropull.reconcilers.resolving import Resolver
from zeropull.reconcilers.rollback_alarms import rollback_alarms
from zeropull.reconcilers.silence import Silence
from zeropull.reconcilers.sweeping import Sweeper
from zeropull.resources.components import InferenceComponent
from zeropull.resources.endpoints import Endpoint
from zeropull.resources.instances import CopyRecord, Instance, InstanceState, TimelineRecord
from zeropull.resources.settings import EndpointSettings
from zeropull.statestore import Store
from zeropull.telemetry import get_logger

log = get_logger(__name__)


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
        silence: Silence,
        monotonic: Callable[[], float],
    ) -> None:
        self._store = store
        self._engine = engine
        self._sweeper = sweeper
        self._resolver = resolver
        self._has_cache = has_cache
        self._settings = settings
        self._silence = silence
        self._monotonic = monotonic
        self._unhealthy_s: dict[str, float] = {}  # since when, by copy ID

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
        return View(
            endpoint,
            instances=instances,
            copies=tuple(copies),
            timelines=tuple(timelines),
            gateways=gateways,
            lost=self._lost(instances, seen),
            unhealthy_since_s=self._unhealthy_since_s(copies, now_s),
            resolve_failures=self._resolver.failures,
            resolve_waits=self._resolver.waiting,
            stopped=frozenset().union(*(each.stopped for each in seen.values())),
            has_cache=self._has_cache(uid),
            alarms=rollback_alarms(self._store, endpoint, components),
            components=components,
            cached={instance_id: each.images for instance_id, each in seen.items()},
        )

    def read(self, endpoint: Endpoint) -> View:
        """The endpoint as the store knows it, whatever engine and gateways say."""
        uid = endpoint.uid
        return View(
            endpoint,
            instances=tuple(s.document for s in self._store.select(Instance, endpoint_uid=uid)),
            copies=tuple(s.document for s in self._store.select(CopyRecord, endpoint_uid=uid)),
            components=tuple(
                s.document for s in self._store.select(InferenceComponent, endpoint_uid=uid)
            ),
            has_cache=self._has_cache(uid),
        )

    def begin_round(self) -> None:
        """Nobody is ill for as long as this control plane did not look."""
        late_s = self._silence.begin_round()
        if late_s:
            log.warning("a round comes late", late_s=round(late_s, 1))
            for copy_id, began_s in self._unhealthy_s.items():
                self._unhealthy_s[copy_id] = began_s + late_s

    def forget_all_but(self, instance_ids: Collection[str]) -> None:
        """What is kept of instances that are gone, and of copies that are gone."""
        for copy_id in list(self._unhealthy_s):
            if self._store.get(CopyRecord, copy_id) is None:
                del self._unhealthy_s[copy_id]
        self._silence.forget_all_but(instance_ids)

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

    def _unhealthy_since_s(self, copies: list[CopyRecord], now_s: float) -> dict[str, float]:
        """Ages by the monotonic clock, as times of the wall clock."""
        monotonic_s = self._monotonic()
        since_s = {}
        for copy in copies:
            if copy.state == CopyState.HEALTHY or copy.healthy_s is None:
                self._unhealthy_s.pop(copy.copy_id, None)
            else:
                began_s = self._unhealthy_s.setdefault(copy.copy_id, monotonic_s)
                since_s[copy.copy_id] = now_s - (monotonic_s - began_s)
        return since_s

    def _lost(self, instances: tuple[Instance, ...], seen: dict[str, Observed]) -> dict[str, str]:
        heard_s = {instance_id: each.heard_s for instance_id, each in seen.items()}
        lost = self._silence.lost(instances, heard_s)
        for instance in instances:
            if instance.state not in (InstanceState.RUNNING, InstanceState.DRAINING):
                continue
            if self._sweeper.is_there(instance) is False:
                lost[instance.instance_id] = f"instance {instance.instance_id} is gone"
        return lost
