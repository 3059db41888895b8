"""Builds the gateway's routes from endpoints, copies and the state of their updates. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from zeropull.controlapi.messages import (
    AccessKey,
    CopyState,
    EndpointRoute,
    Routes,
    Target,
    VariantRoute,
)
from zeropull.reconcilers.endpoint_view import View
from zeropull.reconcilers.endpoints.rollout import instances_in_rotation
from zeropull.reconcilers.observing import is_routable
from zeropull.reconcilers.publishing.component_routes import component_endpoint_route
from zeropull.resources.endpoints import Deployment, Variant
from zeropull.resources.instances import CopyRecord, Instance, InstanceState

MAX_CONCURRENCY_TAG = "zeropull:max-concurrency"


def build_routes(
    views: Iterable[View],
    keys: Iterable[AccessKey],
    *,
    region: str,
    queue_limit: int,
    max_concurrency: Mapping[tuple[str, str], int],
    component_concurrency: Mapping[tuple[str, str], int] | None = None,
    held: Mapping[str, frozenset[str]] | None = None,
) -> Routes:
    """All endpoints of all accounts. `max_concurrency` by (account, model name),
    `component_concurrency` by (account, component name). `held`: by account, the components whose
    requests wait while their first copy starts."""
    endpoints = []
    for view in views:
        newest = view.endpoint.newest
        if newest is not None and newest.is_component_based:
            held_here = (held or {}).get(view.endpoint.account, frozenset())
            limits = component_concurrency or {}
            endpoints.append(component_endpoint_route(view, queue_limit, limits, held_here))
        else:
            endpoints.append(_endpoint_route(view, queue_limit, max_concurrency))
    return Routes(
        version=0,
        region=region,
        keys=tuple(sorted(keys, key=lambda k: k.access_key_id)),
        endpoints=tuple(sorted(endpoints, key=lambda e: (e.account, e.name))),
    )


def _endpoint_route(
    view: View, queue_limit: int, max_concurrency: Mapping[tuple[str, str], int]
) -> EndpointRoute:
    endpoint = view.endpoint
    serving = endpoint.current or endpoint.pending
    names = dict.fromkeys(
        v.name for d in (endpoint.current, endpoint.pending) if d is not None for v in d.variants
    )
    variants = []
    for name in names:
        route = _variant_route(view, name, queue_limit, max_concurrency)
        if route is not None:
            variants.append(route)
    return EndpointRoute(
        name=endpoint.name,
        account=endpoint.account,
        status=endpoint.status.value,
        component_based=serving is not None and serving.is_component_based,
        variants=tuple(variants),
    )


def _variant_route(
    view: View, name: str, queue_limit: int, max_concurrency: Mapping[tuple[str, str], int]
) -> VariantRoute | None:
    current, pending = view.endpoint.current, view.endpoint.pending
    old = current.variant(name) if current else None
    new = pending.variant(name) if pending else None
    described = old or new
    assert described is not None
    if old is None and current is not None and new is not None and new.shifted_instances == 0:
        return None  # comes with the update, and no instance of it takes traffic yet
    in_rotation = _in_rotation(view, name, (current, old), (pending, new))
    targets = []
    for instance in sorted(view.instances, key=lambda i: (i.created_s, i.instance_id)):
        if instance.variant != name or instance.state in (
            InstanceState.TERMINATING,
            InstanceState.WANTED,
        ):
            continue
        for copy in view.copies_on(instance):
            variant = new if pending and copy.deployment_id == pending.deployment_id else old
            target = _target(
                view,
                copy,
                variant or described,
                instance.instance_id in in_rotation,
                max_concurrency,
            )
            if target is not None:
                targets.append(target)
    container = described.containers[0].name if described.containers else "primary"
    return VariantRoute(
        name=name,
        weight=described.desired_weight,
        strategy=described.spec.routing_strategy,
        targets=tuple(targets),
        queue_limit=queue_limit,
        container_name=container,
        instance_type=described.spec.instance_type,
    )


def _in_rotation(
    view: View,
    name: str,
    old: tuple[Deployment | None, Variant | None],
    new: tuple[Deployment | None, Variant | None],
) -> set[str]:
    fleets: list[list[Instance]] = []
    for deployment, variant in (old, new):
        instances = view.fleet(deployment, variant) if deployment and variant else []
        fleets.append([i for i in instances if view.is_healthy(i)])
    old_count, new_count = instances_in_rotation(view.endpoint, name, len(fleets[0]))
    # A new fleet that fell ill must not take the last old instance out of rotation.
    if new_count and not fleets[1] and view.endpoint.current is not None:
        old_count = len(fleets[0])
    return {i.instance_id for i in fleets[0][:old_count] + fleets[1][:new_count]}


def _target(
    view: View,
    copy: CopyRecord,
    variant: Variant,
    is_in_rotation: bool,
    max_concurrency: Mapping[tuple[str, str], int],
) -> Target | None:
    """None for a copy that has never served; one that may still have requests is draining."""
    if copy.host is None or copy.container != 0 or copy.healthy_s is None:
        return None
    if copy.state in (CopyState.FAILED, CopyState.STOPPED):
        return None
    takes_requests = is_in_rotation and is_routable(copy)
    if not takes_requests and copy.routed_s is None:
        return None
    model = variant.spec.model_name
    limit = max_concurrency.get((view.endpoint.account, model)) if model else None
    return Target(
        copy_id=copy.copy_id,
        instance_id=copy.instance_id,
        host=copy.host,
        port=copy.port,
        draining=not takes_requests,
        component=copy.component,
        max_concurrency=limit,
    )
