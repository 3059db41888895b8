"""The control plane's loop: observe, plan (pure), write in one transaction, act, publish."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from zeropull.controlapi.exchange import Exchange
from zeropull.errors import ZeropullError
from zeropull.reconcilers.components.slots import ShapeOf
from zeropull.reconcilers.effects import Effects
from zeropull.reconcilers.endpoint_view import Gateways, View
from zeropull.reconcilers.engine import Engine
from zeropull.reconcilers.failing import provision_limit_s
from zeropull.reconcilers.folding import fold_gateways
from zeropull.reconcilers.guarding import Guard
from zeropull.reconcilers.imagecaches.controller import CacheController
from zeropull.reconcilers.observing import Observer
from zeropull.reconcilers.plan import Draft
from zeropull.reconcilers.planning import plan_endpoint, plan_removal
from zeropull.reconcilers.publishing.publisher import RoutePublisher
from zeropull.reconcilers.resolving import Resolve, Resolver
from zeropull.reconcilers.resting import Awake, Rest, rest_of
from zeropull.reconcilers.silence import Silence
from zeropull.reconcilers.sweeping import Sweeper
from zeropull.reconcilers.writing import write_draft
from zeropull.resources.accounts import StoredKey
from zeropull.resources.components import InferenceComponent
from zeropull.resources.endpoints import Endpoint, EndpointStatus
from zeropull.resources.scaling import ScalableTarget
from zeropull.resources.settings import EndpointSettings, Settings
from zeropull.resources.tags import ResourceTags
from zeropull.statestore import Store
from zeropull.telemetry import get_logger

WATCHED = (
    Endpoint.kind,
    InferenceComponent.kind,
    ScalableTarget.kind,
    StoredKey.kind,
    ResourceTags.kind,
)

SLICE_S = 0.025
"""How long a round may hold the event loop; what is left comes in the next, at once."""
TIDY_S = 60.0  # how often what is gone is forgotten

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Looked:
    """An endpoint after a round: None when it is gone."""

    key: str
    view: View | None = None
    rest: Rest | None = None


class Controller:
    """Brings every endpoint to what the store says. `run` until cancelled.

    `resolve` gives an image by its reference. `shape_of`: what an instance type offers to copies of
    components, None for an unknown one.
    """

    def __init__(
        self,
        store: Store,
        exchange: Exchange,
        engine: Engine,
        caches: CacheController,
        settings: Settings,
        *,
        resolve: Resolve,
        shape_of: ShapeOf,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._exchange = exchange
        self._engine = engine
        self._caches = caches
        self._settings = settings.endpoints
        self._shape_of = shape_of
        self._clock = clock
        self._monotonic = monotonic
        self._wake = asyncio.Event()
        self._resolver = Resolver(store, resolve, settings.endpoints, clock)
        silence = Silence(settings.endpoints, monotonic)
        self._awake = Awake(store, engine, settings.endpoints, monotonic)
        self._sweeper = Sweeper(store, engine, silence, self._wake_instances)
        self._observer = Observer(
            store,
            engine,
            self._sweeper,
            self._resolver,
            caches.has_files,
            settings.endpoints,
            silence,
            monotonic,
        )
        self._guard = Guard(settings.endpoints.backoff, monotonic)
        self._routes = RoutePublisher(store, exchange, settings)
        self._tidied_s = monotonic()
        self._effects = Effects(
            store,
            engine,
            self._resolver,
            settings=settings.endpoints,
            clock=clock,
            monotonic=monotonic,
            on_done=self._wake_endpoint,
        )

    async def run(self) -> None:
        """Reconcile whenever something changes, and every interval; cancelled to stop."""
        await self._sweeper.try_to_sweep()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._sweeper.sweep_forever())
                tasks.create_task(self._sweeper.ask_silent_forever())
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
                self._round(SLICE_S)
                if self._awake:  # the others, once the loop has done what else is due
                    await asyncio.sleep(0)
                    continue
            except ZeropullError as error:
                log.error("reconciliation failed", error=error.reason)
            except Exception as error:  # ending here would end every other endpoint's care too
                log.error("reconciliation failed", error=str(error), exc_info=error)
            try:
                async with asyncio.timeout(self._settings.interval_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _watch_reports(self) -> None:
        while True:
            await self._exchange.reported.wait()
            self._exchange.reported.clear()
            self._wake.set()

    async def _watch_store(self) -> None:
        seen = self._store.revision_of(*WATCHED)
        while True:
            now = await self._store.wait_for_change(seen, *WATCHED, timeout_s=60.0)
            if now > seen:
                seen = now
                self._wake.set()

    def reconcile(self) -> None:
        """One round over all endpoints that are not at rest. Never awaits, so that nothing changes
        under its feet."""
        self._awake.wake_restless()
        self._round(math.inf)

    def _round(self, limit_s: float) -> None:
        """One round over the endpoints about which something has changed, or is due; those that
        `limit_s` is too short for come next."""
        now_s, began_s = self._clock(), time.perf_counter()
        self._observer.begin_round()
        self._awake.gather(now_s)
        self._awake.wake(self._routes.changed())
        gateways = self._gateways()
        planned: list[str] = []
        looked: list[_Looked] = []
        try:
            while (key := self._awake.pop()) is not None:
                planned.append(key)
                looked.append(self._look_at(key, gateways, now_s))
                if time.perf_counter() - began_s >= limit_s:
                    break
            overdue = self._awake.overdue() if not self._awake else None
            if overdue is not None:
                looked.append(self._look_at(overdue, gateways, now_s))
            self._carry_on(looked, now_s)
        except BaseException:
            self._awake.wake(planned)
            raise
        if self._awake.all_looked_at:  # routes without those to come would take them away
            self._routes.publish(now_s)
        if self._monotonic() - self._tidied_s >= TIDY_S and self._awake.all_looked_at:
            self._tidied_s = self._monotonic()
            self._forget_what_is_gone()
        took_ms = round((time.perf_counter() - began_s) * 1e3, 2)
        log.debug(
            "round",
            at_s=now_s,
            ms=took_ms,
            planned=len(planned),
            rechecked=len(looked) - len(planned),
        )

    def _gateways(self) -> Gateways:
        gateways = fold_gateways(
            self._exchange,
            self._routes.serving_since,
            self._monotonic(),
            self._settings.route_ack_s,
        )
        if self._exchange.take_progress():
            self._awake.wake_restless()
        if self._exchange.take_gateways_changed():
            self._awake.wake_restless()
            self._awake.wake_answered(gateways.first_response_s)
        return gateways

    def _look_at(self, key: str, gateways: Gateways, now_s: float) -> _Looked:
        stored = self._store.get(Endpoint, key)
        if stored is None:
            return _Looked(key)
        return self._guarded(stored.document, gateways, now_s)

    def _carry_on(self, looked: list[_Looked], now_s: float) -> None:
        """Caches, assignments and routes of the endpoints that were looked at."""
        views = [each.view for each in looked if each.view is not None]
        for each in looked:
            if each.view is None:
                self._awake.forget(each.key)
                self._routes.forget(each.key)
                self._guard.forget(each.key)
        others = None
        if self._awake.all_looked_at:
            others = self._awake.uids - {view.endpoint.uid for view in views}
        self._caches.reconcile(views, now_s, others)
        for view in views:
            self._run_copies(view, now_s)
        self._routes.renew(views)
        for each in looked:
            if each.view is not None:
                is_settled = self._caches.is_settled(each.view.endpoint.uid)
                self._awake.note(each.view, each.rest if is_settled else None)

    def _guarded(self, endpoint: Endpoint, gateways: Gateways, now_s: float) -> _Looked:
        """The endpoint after this round. What goes wrong with it stays with it: without it here,
        its cache and its routes would go."""
        if not self._guard.may_try(endpoint.key):
            return _Looked(endpoint.key, self._observer.read(endpoint))
        revision = self._store.revision
        try:
            view = self._observer.observe(endpoint, gateways, now_s)
            draft = plan_endpoint(view, now_s, self._settings, self._shape_of)
            draft.endpoint = self._guard.went_well(draft.endpoint)
        except Exception as error:
            self._note_failure(endpoint, error, now_s)
            view = self._observer.read(endpoint)
            if endpoint.status not in (EndpointStatus.DELETING, EndpointStatus.FAILED):
                return _Looked(endpoint.key, view)
            draft = plan_removal(view, now_s)
        after = self._carry_out(view, draft)
        is_quiet = self._store.revision == revision and not self._guard.has_trouble(endpoint.key)
        rest = rest_of(after, draft, self._settings) if after is not None and is_quiet else None
        return _Looked(endpoint.key, after, rest)

    def _carry_out(self, view: View, draft: Draft) -> View | None:
        """The endpoint after it; None when it is gone."""
        try:
            write_draft(self._store, view, draft)
        except Exception as error:
            self._note_failure(view.endpoint, error, draft.now_s)
            return view
        for decision in draft.decisions:
            log.info(decision.message, subject=decision.subject, reason=decision.reason)
        for action in draft.actions:
            self._effects.start(view.endpoint.key, action)
        return None if draft.is_gone else _after(view, draft)

    def _run_copies(self, view: View, now_s: float) -> None:
        try:
            self._engine.run_copies(view, now_s)
        except Exception as error:
            self._note_failure(view.endpoint, error, now_s)

    def _note_failure(self, endpoint: Endpoint, error: Exception, now_s: float) -> None:
        limit_s = _limit_s(endpoint, self._settings)
        self._guard.note(self._store, endpoint, error, limit_s, now_s)

    def _forget_what_is_gone(self) -> None:
        instance_ids = self._awake.instance_ids
        self._observer.forget_all_but(instance_ids)
        self._caches.forget_all_but(instance_ids, self._awake.uids)
        if not self._resolver.failures and not self._effects.has_failures:
            return
        targets = set(instance_ids)
        for endpoint in (s.document for s in self._store.select(Endpoint)):
            for deployment in (endpoint.current, endpoint.pending):
                targets |= {deployment.deployment_id} if deployment else set()
        for component in (s.document for s in self._store.select(InferenceComponent)):
            targets |= {version.version_id for version in component.versions}
        self._resolver.forget_all_but(targets)
        self._effects.forget_all_but(targets)

    def _wake_endpoint(self, key: str) -> None:
        self._awake.wake([key])
        self._wake.set()

    def _wake_instances(self, instance_ids: frozenset[str]) -> None:
        self._awake.wake_instances(instance_ids)
        self._wake.set()


def _limit_s(endpoint: Endpoint, settings: EndpointSettings) -> float:
    """How long something may go wrong with it before it is given up."""
    variants = endpoint.newest.variants if endpoint.newest else ()
    limits_s = [provision_limit_s(variant, settings) for variant in variants]
    return max(limits_s, default=settings.provision_timeout_s)


def _after(view: View, draft: Draft) -> View:
    """What will be there once the draft is written: routes and assignments are built from it."""
    return replace(
        view,
        endpoint=draft.endpoint,
        instances=tuple(draft.instances.values()),
        copies=tuple(draft.copies.values()),
        components=tuple(draft.components.values()),
        announces=draft.announces,
    )
