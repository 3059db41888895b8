"""The instances of an endpoint with inference components: as many as its copies need. Pure."""

from __future__ import annotations

from dataclasses import replace

from zeropull.placement.instances import InstanceBounds, plan_consolidation, plan_instances
from zeropull.reconcilers.components.copies import WantedCopy
from zeropull.reconcilers.components.slots import ShapeOf, requirement_of, slots_of
from zeropull.reconcilers.endpoint_view import live_instances
from zeropull.reconcilers.plan import Draft
from zeropull.resources.components import ComponentStatus
from zeropull.resources.endpoints import Deployment, EndpointStatus, Variant
from zeropull.resources.instances import Instance, InstanceState
from zeropull.resources.settings import EndpointSettings

UNLIMITED = 1_000  # MaxInstanceCount when none is given: the fleet's own limit comes first


def bounds_of(variant: Variant) -> InstanceBounds:
    """How many instances there may be: managed, or as many as were asked for."""
    managed = variant.spec.managed_scaling
    if managed is None or not managed.enabled:
        return InstanceBounds(variant.desired_instances, variant.desired_instances)
    minimum = 1 if managed.min_instances is None else managed.min_instances
    maximum = UNLIMITED if managed.max_instances is None else managed.max_instances
    return InstanceBounds(minimum, max(minimum, maximum))


def adopt_update(draft: Draft) -> None:
    """A new config is in force at once: instances of another type leave as their copies move."""
    current, pending = draft.endpoint.current, draft.endpoint.pending
    if current is None or pending is None:
        return
    variant = pending.variants[0]
    fleet = live_instances(draft.instances.values())
    bounds = bounds_of(variant)
    desired = max(bounds.minimum, min(bounds.maximum, len(fleet)))
    pending = replace(pending, variants=(replace(variant, desired_instances=desired),))
    draft.endpoint = replace(draft.endpoint, current=pending, pending=None)
    for instance in list(draft.instances.values()):
        leaving = instance.leaving
        if instance.instance_type != variant.spec.instance_type:
            leaving = f"the variant is to have instances of type {variant.spec.instance_type}"
        draft.instances[instance.instance_id] = replace(
            instance, deployment_id=pending.deployment_id, leaving=leaving
        )


def note_losses(draft: Draft) -> None:
    for instance in list(draft.instances.values()):
        reason = draft.view.lost.get(instance.instance_id)
        if reason is not None:
            draft.stop(instance, reason)


def keep_size(
    draft: Draft,
    deployment: Deployment,
    variant: Variant,
    settings: EndpointSettings,
    waiting: list[WantedCopy],
    shape_of: ShapeOf,
) -> int:
    """Add instances for what waits, release idle ones; returns how many were added."""
    fleet = live_instances(draft.instances.values())
    bounds = bounds_of(variant)
    held = {copy.instance_id for copy in draft.copies.values()}
    for instance in fleet:
        is_idle = instance.instance_id not in held
        if is_idle and instance.idle_since_s is None:
            draft.instances[instance.instance_id] = replace(instance, idle_since_s=draft.now_s)
        elif not is_idle and instance.idle_since_s is not None:
            draft.instances[instance.instance_id] = replace(instance, idle_since_s=None)
    surplus = len(fleet) - bounds.maximum
    if surplus > 0:
        _thin_out(draft, fleet, surplus, bounds)
        return 0
    shape = shape_of(variant.spec.instance_type)
    if shape is None:
        return 0
    idle = frozenset(
        i.instance_id
        for i in live_instances(draft.instances.values())
        if i.idle_since_s is not None
        and (i.failure or draft.now_s - i.idle_since_s >= settings.idle_release_s)
    )
    plan = plan_instances(
        [each.request for each in waiting],
        slots_of(draft, fleet, shape_of),
        starting=0,
        shape=shape,
        bounds=bounds,
        idle_long_enough=idle,
    )
    cause_s = min((each.cause_s for each in waiting), default=draft.now_s)
    for _ in range(plan.add):
        draft.want_instance(deployment, variant, reason=plan.reason, cause_s=cause_s)
    for instance_id in plan.release:
        draft.drain(draft.instances[instance_id], "idle: it holds no copy of any component")
    return plan.add


def _thin_out(draft: Draft, fleet: list[Instance], count: int, bounds: InstanceBounds) -> None:
    """More instances than there may be: the emptiest leave, after their copies have moved."""
    copies: dict[str, int] = {}
    for copy in draft.copies.values():
        copies[copy.instance_id] = copies.get(copy.instance_id, 0) + 1
    order = sorted(fleet, key=lambda i: (copies.get(i.instance_id, 0), -i.created_s))
    for instance in order[:count]:
        reason = f"the variant is to have {bounds.maximum} instances, there were {len(fleet)}"
        draft.instances[instance.instance_id] = replace(
            draft.instances[instance.instance_id], leaving=reason
        )


def consolidate(draft: Draft, variant: Variant, shape_of: ShapeOf) -> None:
    """Empty instances whose copies fit on the others, one cooldown after the last operation."""
    managed = variant.spec.managed_scaling
    if managed is None or not managed.enabled or managed.strategy != "CONSOLIDATION":
        return
    components = list(draft.components.values())
    if any(c.status is not ComponentStatus.IN_SERVICE for c in components):
        return
    if any(i.leaving for i in draft.instances.values()):
        return
    last_s = max(
        [draft.endpoint.modified_s]
        + [c.modified_s for c in components]
        + [i.created_s for i in draft.instances.values()]
        + [c.created_s for c in draft.copies.values()]
    )
    if draft.now_s - last_s < managed.cooldown_s:
        return
    slots = slots_of(draft, live_instances(draft.instances.values()), shape_of)
    needs = {c.name: requirement_of(c.current.spec) for c in components}
    chosen = plan_consolidation(
        slots, needs, max_step=managed.max_step, minimum=bounds_of(variant).minimum
    )
    for instance_id in chosen:
        reason = "its copies fit on the other instances"
        draft.instances[instance_id] = replace(draft.instances[instance_id], leaving=reason)
        draft.decide("instance consolidated", instance_id, reason)


def release_leaving(draft: Draft) -> None:
    held = {copy.instance_id for copy in draft.copies.values()}
    for instance in list(draft.instances.values()):
        if instance.leaving and instance.instance_id not in held:
            draft.drain(instance, instance.leaving)


def settle(draft: Draft, variant: Variant) -> None:
    """An update of the endpoint has ended when no instance is to leave and enough run."""
    if draft.endpoint.status not in (EndpointStatus.UPDATING, EndpointStatus.ROLLING_BACK):
        return
    deployment = draft.endpoint.current
    assert deployment is not None
    fleet = live_instances(draft.instances.values())
    running = sum(i.state is InstanceState.RUNNING for i in fleet)
    bounds = bounds_of(variant)
    if any(i.leaving for i in draft.instances.values()):
        return
    if running < len(fleet) or not bounds.minimum <= running <= bounds.maximum:
        return
    draft.enter_service(deployment)
