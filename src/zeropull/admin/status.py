"""Gathers from the store what an administrator wants to know of an endpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from zeropull.admin.messages import (
    CacheStatus,
    ComponentState,
    CopyStatus,
    EndpointState,
    InstanceStatus,
    TargetStatus,
)
from zeropull.autoscaler.readings import Decision
from zeropull.controlapi.messages import CopyState
from zeropull.resources.components import InferenceComponent
from zeropull.resources.endpoints import Endpoint
from zeropull.resources.image_caches import ImageCacheRecord
from zeropull.resources.instances import CopyRecord, Instance
from zeropull.resources.scaling import COMPONENT_DIMENSION, ScalableTarget, component_of
from zeropull.statestore import Store

Decisions = Mapping[str, tuple[str, float, Decision]]
"""Mode, time and decision, by the key of the scalable target."""


def endpoint_state(store: Store, endpoint: Endpoint, decisions: Decisions) -> EndpointState:
    """The endpoint with its cache, targets, components, instances and copies."""
    copies = [s.document for s in store.select(CopyRecord, endpoint_uid=endpoint.uid)]
    instances = [s.document for s in store.select(Instance, endpoint_uid=endpoint.uid)]
    components = [s.document for s in store.select(InferenceComponent, endpoint_uid=endpoint.uid)]
    return EndpointState(
        name=endpoint.name,
        account=endpoint.account,
        status=endpoint.status,
        failure_reason=endpoint.failure_reason,
        image_cache=_cache(store, endpoint),
        scaling=tuple(_targets(store, endpoint, {c.name for c in components}, decisions)),
        components=tuple(
            ComponentState(
                c.name,
                c.status,
                c.desired_copies,
                c.current_copies,
                c.failure_reason or c.waiting,
            )
            for c in components
        ),
        instances=tuple(_instance(i, copies) for i in instances),
    )


def _cache(store: Store, endpoint: Endpoint) -> CacheStatus:
    stored = store.get(ImageCacheRecord, endpoint.uid)
    generations = stored.document.generations if stored else ()
    newest = stored.document.newest_published if stored else None
    return CacheStatus(
        generation=newest.number if newest else None,
        images=len(newest.images) if newest else 0,
        size_bytes=newest.size_bytes if newest else 0,
        message=generations[-1].message if generations else "",
    )


def _targets(
    store: Store, endpoint: Endpoint, components: set[str], decisions: Decisions
) -> Iterable[TargetStatus]:
    for stored in store.select(ScalableTarget, prefix=f"{endpoint.account}/"):
        target = stored.document
        is_of_endpoint = (
            component_of(target.resource_id) in components
            if target.dimension == COMPONENT_DIMENSION
            else target.endpoint_and_variant[0] == endpoint.name
        )
        if not is_of_endpoint:
            continue
        mode, decided_s, decision = decisions.get(target.key, ("", 0.0, None))
        yield TargetStatus(
            resource_id=target.resource_id,
            minimum=target.minimum,
            maximum=target.maximum,
            mode=mode,
            decided_s=decided_s,
            desired=decision.desired if decision else None,
            policy=decision.policy if decision else None,
            not_scaled=decision.not_scaled if decision else None,
            reason=decision.reason if decision else "no decision yet",
        )


def _instance(instance: Instance, copies: Iterable[CopyRecord]) -> InstanceStatus:
    return InstanceStatus(
        instance.instance_id,
        instance.variant,
        instance.instance_type,
        instance.state,
        instance.reason,
        instance.failure,
        tuple(
            CopyStatus(c.copy_id, c.component, CopyState(c.state), c.restarts, c.message)
            for c in copies
            if c.instance_id == instance.instance_id
        ),
    )
