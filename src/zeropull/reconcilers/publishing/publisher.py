"""Publishes the gateway's routes after each round."""

from __future__ import annotations

from collections.abc import Mapping

from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.messages import AccessKey, EndpointRoute, Routes
from zeropull.reconcilers.endpoint_view import View
from zeropull.reconcilers.publishing.routes import MAX_CONCURRENCY_TAG, endpoint_route
from zeropull.resources.accounts import StoredKey
from zeropull.resources.endpoints import EndpointStatus
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

log = get_logger(__name__)


class RoutePublisher:
    """Routes of all endpoints, with what keys, tags and scalable targets add to them.

    `serving_since`: by account and name, the first version of the routes by which the endpoint
    serves.
    """

    def __init__(self, store: Store, exchange: Exchange, settings: Settings) -> None:
        self._store = store
        self._exchange = exchange
        self._settings = settings
        self.serving_since: dict[tuple[str, str], int] = {}
        self._last: dict[str, EndpointRoute] = {}  # by endpoint key

    def publish(self, views: list[View], now_s: float) -> None:
        keys = [
            AccessKey(k.access_key_id, k.secret_access_key, k.account)
            for k in (s.document for s in self._store.select(StoredKey))
            if k.enabled
        ]
        routes = Routes(
            version=0,
            region=self._settings.serve.region,
            keys=tuple(sorted(keys, key=lambda k: k.access_key_id)),
            endpoints=tuple(sorted(self._routes(views), key=lambda e: (e.account, e.name))),
        )
        version = self._exchange.publish_routes(routes, now_s)
        serving = {
            (e.account, e.name) for e in routes.endpoints if e.status == EndpointStatus.IN_SERVICE
        }
        self.serving_since = {each: self.serving_since.get(each, version) for each in serving}

    def _routes(self, views: list[View]) -> list[EndpointRoute]:
        models = self._max_concurrency(views)
        components = self._component_concurrency(views)
        held = self._held_components()
        routes: dict[str, EndpointRoute] = {}
        for view in views:
            if view.endpoint.status is EndpointStatus.FAILED:
                continue
            key = view.endpoint.key
            try:
                routes[key] = endpoint_route(
                    view,
                    queue_limit=self._settings.gateway.queue_limit,
                    max_concurrency=models,
                    component_concurrency=components,
                    held=held.get(view.endpoint.account, frozenset()),
                )
            except Exception as error:  # the gateway goes on with what it knows of this one
                log.error("route not built", endpoint=key, error=str(error), exc_info=error)
                if key in self._last:
                    routes[key] = self._last[key]
        self._last = routes
        return list(routes.values())

    def _max_concurrency(self, views: list[View]) -> dict[tuple[str, str], int]:
        limits = {}
        for view in views:
            prefix = view.endpoint.arn.rsplit(":endpoint/", 1)[0]
            for deployment in (view.endpoint.current, view.endpoint.pending):
                for variant in deployment.variants if deployment else ():
                    model = variant.spec.model_name
                    limit = self._concurrency_of(f"{prefix}:model/{model}") if model else None
                    if model and limit is not None:
                        limits[(view.endpoint.account, model)] = limit
        return limits

    def _component_concurrency(self, views: list[View]) -> dict[tuple[str, str], int]:
        limits = {}
        for component in (c for view in views for c in view.components):
            limit = self._concurrency_of(component.arn)
            if limit is not None:
                limits[(component.account, component.name)] = limit
        return limits

    def _concurrency_of(self, arn: str) -> int | None:
        value = self._tags(arn).get(MAX_CONCURRENCY_TAG, "")
        return int(value) if value.isdecimal() and int(value) > 0 else None

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
