"""Builds the gateway's routes from endpoints, copies and the state of their updates. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from zeropull.controlapi.messages import CopyState, EndpointRoute, Target, VariantRoute
from zeropull.reconcilers.endpoint_view import LIVE_STATES, View
from zeropull.reconcilers.endpoints.rollout import instances_in_rotation
from zeropull.reconcilers.folding import is_routable
from zeropull.resources.components import ComponentStatus
from zeropull.resources.endpoints import Deployment, EndpointStatus, Variant
from zeropull.resources.instances import CopyRecord, Instance, InstanceState

MAX_CONCURRENCY_TAG = "zeropull:max-concurrency"

Limits = Mapping[tuple[str, str], int]


def endpoint_route(
    view: View,
    *,
    queue_limit: int,
    max_concurrency: Limits,
    component_concurrency: Limits,
    held: frozenset[str],
) -> EndpointRoute:
    """`max_concurrency` by (account, model name), `component_concurrency` by (account, component
    name). `held`: components whose requests wait while their first copy starts."""
    newest = view.endpoint.newest
    if newest is not None and newest.is_component_based:
        return component_endpoint_route(view, queue_limit, component_concurrency, held)
    return _plain_endpoint_route(view, queue_limit, max_concurrency)


def component_endpoint_route(
    view: View, queue_limit: int, max_concurrency: Limits, held: frozenset[str]
) -> EndpointRoute:
    """Targets by component. `held`: components whose requests wait while their first copy
    starts."""
    names = {c.name for c in view.components if c.status is not ComponentStatus.DELETING}
    up = {
        i.instance_id
        for i in view.instances
        if i.state in LIVE_STATES and i.instance_id not in view.lost
    }
    targets = []
    for copy in sorted(view.copies, key=lambda c: (c.created_s, c.copy_id)):
        if copy.component in names:
            limit = max_concurrency.get((view.endpoint.account, copy.component or ""))
            targets += _targets(copy, copy.instance_id in up, limit)
    containers = {c.current.spec.container.name for c in view.components}
    container = containers.pop() if len(containers) == 1 else "model"
    deployment = view.endpoint.current or view.endpoint.pending
    variants = deployment.variants if deployment else ()
    return EndpointRoute(
        name=view.endpoint.name,
        account=view.endpoint.account,
        status=_status(view),
        component_based=True,
        variants=tuple(_variant_route(v, targets, queue_limit, container) for v in variants),
        components=tuple(sorted(names)),
        held_components=tuple(sorted(held & names)),
        components_at_zero=tuple(
            sorted(c.name for c in view.components if c.name in names and not c.desired_copies)
        ),
    )


def _status(view: View) -> str:
    """As the gateway is to act on it: what has no copy for the moment is not refused, requests wait
    or are asked to come again."""
    if view.announces or view.endpoint.status is EndpointStatus.OUT_OF_SERVICE:
        return EndpointStatus.IN_SERVICE.value
    return view.endpoint.status.value


def _plain_endpoint_route(view: View, queue_limit: int, max_concurrency: Limits) -> EndpointRoute:
    current, pending = view.endpoint.current, view.endpoint.pending
    names = dict.fromkeys(v.name for d in (current, pending) if d is not None for v in d.variants)
    variants = []
    for name in names:
        old = current.variant(name) if current else None
        new = pending.variant(name) if pending else None
        if old is None and current is not None and new is not None and not new.shifted_instances:
            continue  # comes with the update, and no instance of it takes traffic yet
        described = old or new
        assert described is not None
        targets = _variant_targets(view, described, (current, old), (pending, new), max_concurrency)
        container = described.containers[0].name if described.containers else "primary"
        variants.append(_variant_route(described, targets, queue_limit, container))
    return EndpointRoute(
        name=view.endpoint.name,
        account=view.endpoint.account,
        status=_status(view),
        variants=tuple(variants),
    )


def _variant_route(
    variant: Variant, targets: Iterable[Target], queue_limit: int, container: str
) -> VariantRoute:
    return VariantRoute(
        name=variant.name,
        weight=variant.desired_weight,
        strategy=variant.spec.routing_strategy,
        targets=tuple(targets),
        queue_limit=queue_limit,
        container_name=container,
        instance_type=variant.spec.instance_type,
    )


def _variant_targets(
    view: View,
    described: Variant,
    old: tuple[Deployment | None, Variant | None],
    new: tuple[Deployment | None, Variant | None],
    max_concurrency: Limits,
) -> list[Target]:
    in_rotation = _in_rotation(view, described.name, old, new)
    pending, new_variant = new
    targets = []
    for instance in sorted(view.instances, key=lambda i: (i.created_s, i.instance_id)):
        if instance.variant != described.name or instance.state in (
            InstanceState.TERMINATING,
            InstanceState.WANTED,
        ):
            continue
        for copy in view.copies_on(instance):
            is_new = pending is not None and copy.deployment_id == pending.deployment_id
            variant = (new_variant if is_new else old[1]) or described
            model = variant.spec.model_name
            limit = max_concurrency.get((view.endpoint.account, model)) if model else None
            targets += _targets(copy, instance.instance_id in in_rotation, limit)
    return targets


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


def _targets(copy: CopyRecord, may_serve: bool, max_concurrency: int | None) -> list[Target]:
    """None for a copy that has never served; one that may still have requests is draining.

    `may_serve`: its instance is in rotation.
    """
    if copy.host is None or copy.container != 0 or copy.healthy_s is None:
        return []
    if copy.state in (CopyState.FAILED, CopyState.STOPPED):
        return []
    takes_requests = may_serve and is_routable(copy)
    if not takes_requests and copy.routed_s is None:
        return []
    return [
        Target(
            copy_id=copy.copy_id,
            instance_id=copy.instance_id,
            host=copy.host,
            port=copy.port,
            draining=not takes_requests,
            component=copy.component,
            max_concurrency=max_concurrency,
        )
    ]
