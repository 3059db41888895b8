"""The gateway's routes of an endpoint with inference components: targets by component. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from zeropull.controlapi.messages import CopyState, EndpointRoute, Target, VariantRoute
from zeropull.reconcilers.endpoint_view import LIVE_STATES, View
from zeropull.reconcilers.observing import is_routable
from zeropull.resources.components import ComponentStatus
from zeropull.resources.instances import CopyRecord


def component_endpoint_route(
    view: View,
    queue_limit: int,
    max_concurrency: Mapping[tuple[str, str], int],
    held: frozenset[str],
) -> EndpointRoute:
    """`max_concurrency` by (account, component); `held`: components whose requests wait while
    their first copy starts."""
    endpoint = view.endpoint
    deployment = endpoint.current or endpoint.pending
    names = tuple(
        sorted(c.name for c in view.components if c.status is not ComponentStatus.DELETING)
    )
    up = {
        i.instance_id
        for i in view.instances
        if i.state in LIVE_STATES and i.instance_id not in view.lost
    }
    variants = []
    for variant in deployment.variants if deployment else ():
        targets = [
            target
            for copy in sorted(view.copies, key=lambda c: (c.created_s, c.copy_id))
            if copy.component in names
            and (target := _target(view, copy, copy.instance_id in up, max_concurrency)) is not None
        ]
        container = {c.current.spec.container.name for c in view.components}
        variants.append(
            VariantRoute(
                name=variant.name,
                weight=variant.desired_weight,
                strategy=variant.spec.routing_strategy,
                targets=tuple(targets),
                queue_limit=queue_limit,
                container_name=container.pop() if len(container) == 1 else "model",
                instance_type=variant.spec.instance_type,
            )
        )
    return EndpointRoute(
        name=endpoint.name,
        account=endpoint.account,
        status=endpoint.status.value,
        component_based=True,
        variants=tuple(variants),
        components=names,
        held_components=tuple(sorted(held & frozenset(names))),
    )


def _target(
    view: View,
    copy: CopyRecord,
    is_up: bool,
    max_concurrency: Mapping[tuple[str, str], int],
) -> Target | None:
    """None for a copy that has never served; one that may still have requests is draining."""
    if copy.host is None or copy.healthy_s is None:
        return None
    if copy.state in (CopyState.FAILED, CopyState.STOPPED):
        return None
    takes_requests = is_up and is_routable(copy)
    if not takes_requests and copy.routed_s is None:
        return None
    return Target(
        copy_id=copy.copy_id,
        instance_id=copy.instance_id,
        host=copy.host,
        port=copy.port,
        draining=not takes_requests,
        component=copy.component,
        max_concurrency=max_concurrency.get((view.endpoint.account, copy.component or "")),
    )
