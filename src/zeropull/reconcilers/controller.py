"""The control plane's loop: observe, plan (pure), write in one transaction, act, publish."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.messages import (
    AccessKey,
    CopyReport,
    CopyState,
    ImagePath,
    RegistryAccess,
    StoreAccess,
)
from zeropull.errors import NotFound, ZeropullError
from zeropull.oci.images import ResolvedImage
from zeropull.placement.capacity import Shape
from zeropull.providers.protocol import MachineShape, Provider
from zeropull.reconcilers.components.planning import plan_component_endpoint
from zeropull.reconcilers.components.slots import placing_shape
from zeropull.reconcilers.effects import Effects
from zeropull.reconcilers.endpoint_view import View
from zeropull.reconcilers.endpoints.planning import plan_endpoint
from zeropull.reconcilers.imagecaches.controller import CacheController
from zeropull.reconcilers.observing import (
    ended,
    fold_copy,
    fold_gateways,
    fold_timeline,
    lost_reason,
    surplus_timelines,
)
from zeropull.reconcilers.plan import Draft
from zeropull.reconcilers.publishing.assignments import IMAGE_PATH_TAG, build_assignment
from zeropull.reconcilers.publishing.component_assignments import build_component_assignment
from zeropull.reconcilers.publishing.routes import MAX_CONCURRENCY_TAG, build_routes
from zeropull.reconcilers.rollback_alarms import rollback_alarms
from zeropull.resources.accounts import StoredKey
from zeropull.resources.components import InferenceComponent
from zeropull.resources.documents import Document
from zeropull.resources.endpoints import Endpoint, EndpointStatus
from zeropull.resources.instances import (
    CopyIntent,
    CopyRecord,
    Instance,
    InstanceState,
    TimelineRecord,
)
from zeropull.resources.scaling import (
    COMPONENT_DIMENSION,
    ScalableTarget,
    component_of,
    mode_of,
)
from zeropull.resources.settings import Settings
from zeropull.resources.tags import ResourceTags
from zeropull.statestore import Store
from zeropull.telemetry import get_logger

LIST_INTERVAL_S = 3.0  # how often the provider is asked what is there, and to mend it

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Outside:
    """What the loop needs of the world, apart from store, exchange and provider."""

    resolve: Callable[[str], Awaitable[ResolvedImage]]
    shape: Callable[[str], MachineShape]  # by instance type; raises InvalidInput
    registry_access: Callable[[str], RegistryAccess | None]  # by image reference
    prepare: Callable[[Endpoint], Awaitable[None]]  # before its instances are launched or healed
    clock: Callable[[], float] = time.time


class Controller:
    """Brings every endpoint to what the store says. `run` until cancelled."""

    def __init__(
        self,
        store: Store,
        exchange: Exchange,
        provider: Provider,
        caches: CacheController,
        settings: Settings,
        outside: Outside,
    ) -> None:
        self._store = store
        self._exchange = exchange
        self._provider = provider
        self._caches = caches
        self._settings = settings
        self._outside = outside
        self._clock = outside.clock
        self._wake = asyncio.Event()
        self._started_s = self._clock()
        self._present: frozenset[str] | None = None
        self._present_asked_s = 0.0
        self._unhealthy_since_s: dict[str, float] = {}
        self._image_paths: dict[str, ImagePath] = {}
        self._routes_version = 0
        self._effects = Effects(
            store,
            exchange,
            provider,
            resolve=outside.resolve,
            shape=outside.shape,
            volumes=caches.volumes_for,
            prepare=outside.prepare,
            settings=settings.endpoints,
            node_disk_bytes=settings.fleet.node_disk_bytes,
            clock=self._clock,
            on_done=self._wake.set,
        )

    async def run(self) -> None:
        """Reconcile whenever something changes, and every interval; cancelled to stop."""
        await self._try_to_mend()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._mend_forever())
                tasks.create_task(self._watch_reports())
                tasks.create_task(self._watch_store())
                tasks.create_task(self._reconcile_forever())
        finally:
            await self._effects.close()
            await self._caches.close()

    async def _reconcile_forever(self) -> None:
        while True:
            self._wake.clear()
            try:
                self.reconcile()
            except ZeropullError as error:
                log.error("reconciliation failed", error=error.reason)
            except Exception as error:  # ending here would end every other endpoint's care too
                log.error("reconciliation failed", error=str(error), exc_info=error)
            try:
                async with asyncio.timeout(self._settings.endpoints.interval_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _watch_reports(self) -> None:
        while True:
            await self._exchange.reported.wait()
            self._exchange.reported.clear()
            self._wake.set()

    async def _watch_store(self) -> None:
        kinds = (
            Endpoint.kind,
            InferenceComponent.kind,
            ScalableTarget.kind,
            StoredKey.kind,
            ResourceTags.kind,
        )
        seen = self._store.revision_of(*kinds)
        while True:
            now = await self._store.wait_for_change(seen, *kinds, timeout_s=60.0)
            if now > seen:
                seen = now
                self._wake.set()

    # ------------------------------------------------------------------------------- the provider

    async def _mend_forever(self) -> None:
        while True:
            await asyncio.sleep(LIST_INTERVAL_S)
            await self._try_to_mend()

    async def _try_to_mend(self) -> None:
        try:
            await self._list_and_mend()
        except ZeropullError as error:
            log.warning("the provider does not answer", error=error.reason)
        except Exception as error:  # of the operating system, say: the next round tries again
            log.error("the provider does not answer", error=str(error), exc_info=error)

    async def _list_and_mend(self) -> None:
        """Ask what is there; end what the store does not know; heal what it does.

        What fails for one endpoint or instance is not to keep the others from being mended.
        """
        for stored in self._store.select(Endpoint):
            try:
                await self._outside.prepare(stored.document)
            except ZeropullError as error:
                log.warning("not prepared", endpoint=stored.document.name, error=error.reason)
        asked_s = self._clock()
        found = {p.instance_id for p in await self._provider.list_instances()}
        known = {s.document.instance_id: s.document for s in self._store.select(Instance)}
        for instance_id in sorted(found - known.keys()):
            log.warning("unknown instance swept", instance_id=instance_id)
            try:
                await self._provider.terminate(instance_id)
            except ZeropullError as error:
                log.warning("instance not swept", instance_id=instance_id, error=error.reason)
        for instance_id in sorted(found & known.keys()):
            if known[instance_id].state not in (InstanceState.RUNNING, InstanceState.DRAINING):
                continue
            try:
                if await self._provider.heal(instance_id):
                    log.warning("instance healed", instance_id=instance_id)
            except NotFound:
                found.discard(instance_id)
            except ZeropullError as error:
                log.warning("instance not healed", instance_id=instance_id, error=error.reason)
        if self._present is None or self._present != frozenset(found):
            self._wake.set()
        self._present, self._present_asked_s = frozenset(found), asked_s

    # -------------------------------------------------------------------------------- one round

    def reconcile(self) -> None:
        """One round over all endpoints. Never awaits, so that nothing changes under its feet."""
        now_s = self._clock()
        gateways = fold_gateways(
            self._exchange.gateways,
            self._routes_version,
            now_s,
            self._settings.endpoints.route_ack_s,
        )
        held = self._held_components()
        views = []
        for stored in self._store.select(Endpoint):
            view = self._observe(View(stored.document, gateways=gateways), now_s)
            try:
                draft = self._plan(view, now_s)
                self._write(view, draft)
            except Exception as error:
                # It stays as it is; without it here, its cache and its routes would go.
                log.error(
                    "endpoint not reconciled",
                    endpoint=view.endpoint.name,
                    error=str(error),
                    exc_info=None if isinstance(error, ZeropullError) else error,
                )
                views.append(view)
                continue
            for decision in draft.decisions:
                log.info(decision.message, subject=decision.subject, reason=decision.reason)
            for action in draft.actions:
                self._effects.start(view.endpoint.key, action)
            if not draft.is_gone:
                views.append(_after(view, draft))
        self._caches.reconcile(views, now_s)
        for view in views:
            self._publish_assignments(view, now_s)
        self._publish_routes(views, held, now_s)
        self._forget_what_is_gone(views)

    def _plan(self, view: View, now_s: float) -> Draft:
        newest = view.endpoint.newest
        if newest is None or not newest.is_component_based:
            return plan_endpoint(view, now_s, self._settings.endpoints)

        def shape_of(instance_type: str) -> Shape | None:
            shape = self._shape_or_none(instance_type)
            return placing_shape(shape) if shape is not None else None

        return plan_component_endpoint(view, now_s, self._settings.endpoints, shape_of)

    def _forget_what_is_gone(self, views: list[View]) -> None:
        instances = {i.instance_id for view in views for i in view.instances}
        copies = {c.copy_id for view in views for c in view.copies}
        for instance_id in self._image_paths.keys() - instances:
            del self._image_paths[instance_id]
        for copy_id in self._unhealthy_since_s.keys() - copies:
            del self._unhealthy_since_s[copy_id]

    def _observe(self, view: View, now_s: float) -> View:
        """Read the endpoint's documents and fold the newest reports into them."""
        uid = view.endpoint.uid
        instances = tuple(s.document for s in self._store.select(Instance, endpoint_uid=uid))
        components = tuple(
            s.document for s in self._store.select(InferenceComponent, endpoint_uid=uid)
        )
        copies, stopped = [], set()
        with self._store.transaction():
            for stored in self._store.select(CopyRecord, endpoint_uid=uid):
                before = copy = stored.document
                report = self._copy_report(copy)
                if report is not None:
                    copy = fold_copy(copy, report)
                if copy.routed_s is None and copy.copy_id in view.gateways.routed_s:
                    copy = replace(copy, routed_s=view.gateways.routed_s[copy.copy_id])
                if copy != before:
                    self._store.put(copy)
                copies.append(copy)
                if self._is_stopped(copy, report):
                    stopped.add(copy.copy_id)
            timelines = self._fold_timelines(uid, instances, copies, view)
        self._note_unhealthy(copies, now_s)
        return replace(
            view,
            instances=instances,
            copies=tuple(copies),
            timelines=tuple(timelines),
            lost=self._lost(instances, now_s),
            unhealthy_since_s={
                c.copy_id: self._unhealthy_since_s[c.copy_id]
                for c in copies
                if c.copy_id in self._unhealthy_since_s
            },
            resolve_failures=self._effects.resolve_failures,
            stopped=frozenset(stopped),
            has_cache=self._caches.has_files(uid),
            alarms=rollback_alarms(self._store, view.endpoint, components),
            components=components,
            cached={
                i.instance_id: frozenset(
                    image.manifest_digest
                    for image in self._exchange.nodes[i.instance_id].report.images
                    if image.on_node
                )
                for i in instances
                if i.instance_id in self._exchange.nodes
            },
        )

    def _fold_timelines(
        self,
        uid: str,
        instances: tuple[Instance, ...],
        copies: list[CopyRecord],
        view: View,
    ) -> list[TimelineRecord]:
        by_instance = {i.instance_id: i for i in instances}
        by_copy = {c.copy_id: c for c in copies}
        records = []
        for stored in self._store.select(TimelineRecord, endpoint_uid=uid):
            record = stored.document
            copy = by_copy.get(record.copy_id)
            if record.ended_s is None and copy is not None:
                record = fold_timeline(
                    record,
                    by_instance.get(record.instance_id),
                    copy,
                    self._copy_report(copy),
                    view.gateways,
                )
                if record != stored.document:
                    self._store.put(record)
            records.append(record)
        for old in surplus_timelines(records, self._settings.endpoints.timeline_launches):
            self._store.delete(TimelineRecord, old.copy_id)
            records.remove(old)
        return records

    def _copy_report(self, copy: CopyRecord) -> CopyReport | None:
        received = self._exchange.nodes.get(copy.instance_id)
        if received is None:
            return None
        return next((c for c in received.report.copies if c.copy_id == copy.copy_id), None)

    def _is_stopped(self, copy: CopyRecord, report: CopyReport | None) -> bool:
        """The node has acted on "stop": it says so, or it no longer knows the copy."""
        if report is not None:
            return report.state is CopyState.STOPPED
        received = self._exchange.nodes.get(copy.instance_id)
        topic = self._exchange.assignments.get(copy.instance_id)
        if received is None or topic is None or topic.message is None:
            return False
        return (
            copy.intent is CopyIntent.STOP
            and received.report.assignment_version >= topic.message.version
            and any(c.copy_id == copy.copy_id and c.desired == "stop" for c in topic.message.copies)
        )

    def _note_unhealthy(self, copies: list[CopyRecord], now_s: float) -> None:
        for copy in copies:
            if copy.state == CopyState.HEALTHY or copy.healthy_s is None:
                self._unhealthy_since_s.pop(copy.copy_id, None)
            else:
                self._unhealthy_since_s.setdefault(copy.copy_id, now_s)

    def _lost(self, instances: tuple[Instance, ...], now_s: float) -> dict[str, str]:
        lost = {}
        for instance in instances:
            listed = (
                self._present is not None and (instance.running_s or now_s) < self._present_asked_s
            )
            reason = lost_reason(
                instance,
                self._exchange.nodes.get(instance.instance_id),
                is_there=instance.instance_id in (self._present or ()) if listed else None,
                started_s=self._started_s,
                now_s=now_s,
                settings=self._settings.endpoints,
            )
            if reason is not None:
                lost[instance.instance_id] = reason
        return lost

    def _write(self, view: View, draft: Draft) -> None:
        read: list[Document] = [*view.instances, *view.copies, *view.timelines]
        before = {(d.kind, d.key): d for d in read}
        after: list[Document] = [*draft.instances.values()]
        after += [*draft.copies.values(), *draft.timelines.values()]
        before |= {(c.kind, c.key): c for c in view.components}
        after += draft.components.values()
        with self._store.transaction():
            for copy_id in draft.gone_copies:
                self._store.delete(CopyRecord, copy_id)
                if (timeline := draft.timelines.get(copy_id)) is not None:
                    after.append(ended(timeline, draft.now_s))
            for component in view.components:
                if component.name not in draft.components:
                    self._store.delete(ResourceTags, component.arn)
                    self._store.delete(InferenceComponent, component.key)
            for document in after:
                if before.get((document.kind, document.key)) != document:
                    self._store.put(document)
            if draft.is_gone:
                self._store.delete(ResourceTags, view.endpoint.arn)
                self._store.delete(Endpoint, view.endpoint.key)
                log.info("endpoint deleted", endpoint=view.endpoint.name)
            elif draft.endpoint != view.endpoint:
                self._store.put(draft.endpoint)

    # -------------------------------------------------------------------------------- publishing

    def _publish_assignments(self, view: View, now_s: float) -> None:
        known = {
            d.deployment_id for d in (view.endpoint.current, view.endpoint.pending) if d is not None
        }
        if view.endpoint.newest is not None and view.endpoint.newest.is_component_based:
            self._publish_component_assignments(view, now_s)
            return
        for instance in view.instances:
            if instance.state is InstanceState.WANTED:
                continue
            topic = self._exchange.assignments.get(instance.instance_id)
            published = topic.message if topic else None
            copies = view.copies_on(instance)
            if instance.deployment_id not in known:
                # What it serves stands in no document any more: it goes on until it is to stop.
                if not all(c.intent is CopyIntent.STOP for c in copies):
                    continue
                if published is not None:
                    stopped = tuple(replace(c, desired="stop") for c in published.copies)
                    self._exchange.publish_assignment(replace(published, copies=stopped), now_s)
                    continue
            assignment = build_assignment(
                view,
                instance,
                region=self._settings.serve.region,
                shape=self._shape_or_none(instance.instance_type),
                simulate_accelerators=self._settings.fleet.simulate_accelerators,
                image_path=self._image_path(view.endpoint, instance),
                waits=self._caches.waits_for(instance),
                registry_access=self._outside.registry_access,
                buckets=self._buckets(),
            )
            self._exchange.publish_assignment(assignment, now_s)

    def _publish_component_assignments(self, view: View, now_s: float) -> None:
        for instance in view.instances:
            if instance.state is InstanceState.WANTED:
                continue
            assignment = build_component_assignment(
                view,
                instance,
                region=self._settings.serve.region,
                simulate_accelerators=self._settings.fleet.simulate_accelerators,
                image_path=self._image_path(view.endpoint, instance),
                waits=self._caches.waits_for(instance),
                registry_access=self._outside.registry_access,
                buckets=self._buckets(),
            )
            self._exchange.publish_assignment(assignment, now_s)

    def _publish_routes(
        self, views: list[View], held: dict[str, frozenset[str]], now_s: float
    ) -> None:
        keys = [
            AccessKey(k.access_key_id, k.secret_access_key, k.account)
            for k in (s.document for s in self._store.select(StoredKey))
            if k.enabled
        ]
        routes = build_routes(
            [v for v in views if v.endpoint.status is not EndpointStatus.FAILED],
            keys,
            region=self._settings.serve.region,
            queue_limit=self._settings.gateway.queue_limit,
            max_concurrency=self._max_concurrency(views),
            component_concurrency=self._component_concurrency(views),
            held=held,
        )
        self._routes_version = self._exchange.publish_routes(routes, now_s)

    def _shape_or_none(self, instance_type: str) -> MachineShape | None:
        try:
            return self._outside.shape(instance_type)
        except ZeropullError:
            return None  # a type that the configuration no longer has: it runs without limits

    def _image_path(self, endpoint: Endpoint, instance: Instance) -> ImagePath:
        """The tag's value when the instance was first seen: a later one is for later launches."""
        known = self._image_paths.get(instance.instance_id)
        if known is None:
            value = self._tags(endpoint.arn).get(IMAGE_PATH_TAG, ImagePath.AUTO.value)
            known = ImagePath(value) if value in list(ImagePath) else ImagePath.AUTO
            self._image_paths[instance.instance_id] = known
        return known

    def _max_concurrency(self, views: list[View]) -> dict[tuple[str, str], int]:
        limits = {}
        for view in views:
            prefix = view.endpoint.arn.rsplit(":endpoint/", 1)[0]
            for deployment in (view.endpoint.current, view.endpoint.pending):
                for variant in deployment.variants if deployment else ():
                    model = variant.spec.model_name
                    value = self._tags(f"{prefix}:model/{model}").get(MAX_CONCURRENCY_TAG, "")
                    if model and value.isdecimal() and int(value) > 0:
                        limits[(view.endpoint.account, model)] = int(value)
        return limits

    def _component_concurrency(self, views: list[View]) -> dict[tuple[str, str], int]:
        limits = {}
        for component in (c for view in views for c in view.components):
            value = self._tags(component.arn).get(MAX_CONCURRENCY_TAG, "")
            if value.isdecimal() and int(value) > 0:
                limits[(component.account, component.name)] = int(value)
        return limits

    def _held_components(self) -> dict[str, frozenset[str]]:
        """Those that the fast mode scales: it starts a copy for the first request that waits."""
        held: dict[str, set[str]] = {}
        for stored in self._store.select(ScalableTarget, dimension=COMPONENT_DIMENSION):
            target = stored.document
            if target.holds(mode_of(self._tags(target.arn), self._settings.scaling.mode)):
                held.setdefault(target.account, set()).add(component_of(target.resource_id))
        return {account: frozenset(names) for account, names in held.items()}

    def _tags(self, arn: str) -> Mapping[str, str]:
        stored = self._store.get(ResourceTags, arn)
        return stored.document.tags if stored else {}

    def _buckets(self) -> dict[str, StoreAccess]:
        return {
            name: StoreAccess(
                endpoint=b.endpoint,
                region=b.region,
                access_key_id=b.access_key_id,
                secret_access_key=b.secret_access_key,
                session_token=b.session_token,
                directory=b.directory,
            )
            for name, b in self._settings.buckets.items()
        }


def _after(view: View, draft: Draft) -> View:
    """What will be there once the draft is written: routes and assignments are built from it."""
    return replace(
        view,
        endpoint=draft.endpoint,
        instances=tuple(draft.instances.values()),
        copies=tuple(draft.copies.values()),
        components=tuple(draft.components.values()),
    )
