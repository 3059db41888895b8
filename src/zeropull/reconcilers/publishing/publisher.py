"""Publishes the gateway's routes after each round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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
from zeropull.statestore.cached_kind import CachedKind
from zeropull.telemetry import get_logger

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Named:
    """What of an endpoint tags and scalable targets may name. ARNs by the name of the model or of
    the component."""

    account: str
    models: dict[str, str]
    components: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Additions:
    """What tags and scalable targets add to the route of one endpoint."""

    models: dict[tuple[str, str], int]
    components: dict[tuple[str, str], int]
    held: frozenset[str]


class RoutePublisher:
    """Routes of all endpoints, with what keys, tags and scalable targets add to them.

    `serving_since`: by account and name, the first version of the routes by which the endpoint
    serves.
    """

    def __init__(self, store: Store, exchange: Exchange, settings: Settings) -> None:
        self._exchange = exchange
        self._settings = settings
        self._keys = CachedKind(store, StoredKey)
        self._tags = CachedKind(store, ResourceTags)
        self._targets = CachedKind(store, ScalableTarget)
        self._store = store
        self.serving_since: dict[tuple[str, str], int] = {}
        self._routes: dict[str, EndpointRoute] = {}  # by endpoint key
        self._named: dict[str, _Named] = {}
        self._additions: dict[str, _Additions] = {}
        self._held: dict[str, frozenset[str]] = {}
        self._added_at = -1  # revision of tags and targets that the additions were made from
        self._keys_at = -1
        self._is_stale = True

    def changed(self) -> set[str]:
        """Endpoints, by key, to whose routes tags or scalable targets add something else now."""
        revision = self._store.revision_of(ScalableTarget.kind, ResourceTags.kind)
        if revision == self._added_at:
            return set()
        self._added_at = revision
        self._held = self._held_components()
        return {
            key
            for key, named in self._named.items()
            if self._add(named) != self._additions.get(key)
        }

    def forget(self, key: str) -> None:
        """The endpoint is gone."""
        self._named.pop(key, None)
        self._additions.pop(key, None)
        if self._routes.pop(key, None) is not None:
            self._is_stale = True

    def renew(self, views: Iterable[View]) -> None:
        """Build the routes of these endpoints anew; those of all others stay as they are."""
        for view in views:
            key = view.endpoint.key
            named = self._named[key] = _named(view)
            additions = self._additions[key] = self._add(named)
            if view.endpoint.status is EndpointStatus.FAILED:
                self._is_stale |= self._routes.pop(key, None) is not None
                continue
            try:
                route = endpoint_route(
                    view,
                    queue_limit=self._settings.gateway.queue_limit,
                    max_concurrency=additions.models,
                    component_concurrency=additions.components,
                    held=additions.held,
                )
            except Exception as error:  # the gateway goes on with what it knows of this one
                log.error("route not built", endpoint=key, error=str(error), exc_info=error)
                continue
            if route != self._routes.get(key):
                self._routes[key] = route
                self._is_stale = True

    def publish(self, now_s: float) -> None:
        """Tell the gateways, if there is something to tell."""
        keys_at = self._store.revision_of(StoredKey.kind)
        if not self._is_stale and keys_at == self._keys_at:
            return
        keys = [
            AccessKey(k.access_key_id, k.secret_access_key, k.account)
            for k in self._keys.all()
            if k.enabled
        ]
        routes = Routes(
            version=0,
            region=self._settings.serve.region,
            keys=tuple(sorted(keys, key=lambda k: k.access_key_id)),
            endpoints=tuple(sorted(self._routes.values(), key=lambda e: (e.account, e.name))),
        )
        version = self._exchange.publish_routes(routes, now_s)
        serving = {
            (e.account, e.name) for e in routes.endpoints if e.status == EndpointStatus.IN_SERVICE
        }
        self.serving_since = {each: self.serving_since.get(each, version) for each in serving}
        self._is_stale, self._keys_at = False, keys_at

    def _add(self, named: _Named) -> _Additions:
        held = self._held.get(named.account, frozenset())
        return _Additions(
            self._limits(named.account, named.models),
            self._limits(named.account, named.components),
            held & named.components.keys(),
        )

    def _limits(self, account: str, arns: Mapping[str, str]) -> dict[tuple[str, str], int]:
        found = ((name, self._concurrency_of(arn)) for name, arn in arns.items())
        return {(account, name): limit for name, limit in found if limit is not None}

    def _concurrency_of(self, arn: str) -> int | None:
        value = self._tags_of(arn).get(MAX_CONCURRENCY_TAG, "")
        return int(value) if value.isdecimal() and int(value) > 0 else None

    def _held_components(self) -> dict[str, frozenset[str]]:
        """Those that the fast mode scales: it starts a copy for the first request that waits."""
        held: dict[str, set[str]] = {}
        for target in self._targets.all():
            if target.dimension == COMPONENT_DIMENSION and target.holds(
                mode_of(self._tags_of(target.arn), self._settings.scaling.mode)
            ):
                held.setdefault(target.account, set()).add(component_of(target.resource_id))
        return {account: frozenset(names) for account, names in held.items()}

    def _tags_of(self, arn: str) -> Mapping[str, str]:
        found = self._tags.get(arn)
        return found.tags if found is not None else {}


def _named(view: View) -> _Named:
    prefix = view.endpoint.arn.rsplit(":endpoint/", 1)[0]
    models = {
        variant.spec.model_name: f"{prefix}:model/{variant.spec.model_name}"
        for deployment in (view.endpoint.current, view.endpoint.pending)
        for variant in (deployment.variants if deployment else ())
        if variant.spec.model_name
    }
    components = {each.name: each.arn for each in view.components}
    return _Named(view.endpoint.account, models, components)
