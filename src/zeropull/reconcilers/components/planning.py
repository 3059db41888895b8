"""Decides what happens next to one endpoint with inference components: pure.

Copies are placed first on instances that run, then on those that are on their way, and only what
fits on neither makes new instances. Deleting the endpoint deletes its components: none survives it
with a name that is taken and nowhere to run.
"""

from __future__ import annotations

from dataclasses import replace

from zeropull.placement.capacity import Slot
from zeropull.placement.instances import InstanceBounds, plan_consolidation, plan_instances
from zeropull.placement.placing import Placed, place_copies
from zeropull.reconcilers import failure_reasons
from zeropull.reconcilers.components.copies import (
    WantedCopy,
    fail_version,
    note_waiting,
    plan_copies,
    plan_leaving_copies,
)
from zeropull.reconcilers.components.slots import (
    ShapeOf,
    live_instances,
    request_for,
    requirement_of,
    slots_of,
    version_of,
)
from zeropull.reconcilers.endpoint_view import View
from zeropull.reconcilers.endpoints.fleet import promoted
from zeropull.reconcilers.endpoints.planning import plan_launches, plan_leaving
from zeropull.reconcilers.plan import Draft
from zeropull.resources.components import ComponentStatus
from zeropull.resources.endpoints import Deployment, EndpointStatus, Variant
from zeropull.resources.instances import (
    CopyRecord,
    Instance,
    InstanceState,
    TimelineRecord,
)
from zeropull.resources.settings import EndpointSettings
from zeropull.resources.stages import Stage, StageRecord

UNLIMITED = 1_000  # MaxInstanceCount when none is given: the fleet's own limit comes first
NO_ROOM = (
    "There is not enough hardware resources on the instances for this endpoint to create a copy of "
    "the inference component."
)
_FIXED_BY_USER = "ManagedInstanceScaling is not enabled, and the variant has {0} instance(s)"


def plan_component_endpoint(
    view: View, now_s: float, settings: EndpointSettings, shape_of: ShapeOf
) -> Draft:
    """What to write and to do now; an empty draft when everything is as it should be."""
    draft = Draft(view, now_s)
    match view.endpoint.status:
        case EndpointStatus.DELETING:
            _delete(draft)
        case EndpointStatus.FAILED:
            for instance in list(draft.instances.values()):
                draft.stop(instance, "the endpoint has failed")
        case _:
            _adopt_update(draft)
            _note_losses(draft)
            if draft.endpoint.current is None:
                _create(draft, settings)
            else:
                _serve(draft, settings, shape_of)
    plan_leaving_copies(draft, settings)
    _drop_deleted(draft)
    plan_leaving(draft, settings)
    plan_launches(draft)
    _count(draft)
    if view.endpoint.status is EndpointStatus.DELETING and not draft.instances:
        draft.components.clear()
        draft.is_gone = not view.has_cache
    return draft


def bounds_of(variant: Variant) -> InstanceBounds:
    """How many instances there may be: managed, or as many as were asked for."""
    managed = variant.spec.managed_scaling
    if managed is None or not managed.enabled:
        return InstanceBounds(variant.desired_instances, variant.desired_instances)
    minimum = 1 if managed.min_instances is None else managed.min_instances
    maximum = UNLIMITED if managed.max_instances is None else managed.max_instances
    return InstanceBounds(minimum, max(minimum, maximum))


# ------------------------------------------------------------------------------- statuses


def _delete(draft: Draft) -> None:
    for name, component in list(draft.components.items()):
        if component.status is not ComponentStatus.DELETING:
            draft.components[name] = replace(
                component, status=ComponentStatus.DELETING, modified_s=draft.now_s
            )
    for instance in list(draft.instances.values()):
        if instance.state is InstanceState.WANTED:
            draft.stop(instance, "the endpoint is deleted")
        else:
            draft.drain(instance, "the endpoint is deleted")


def _drop_deleted(draft: Draft) -> None:
    used = {copy.component for copy in draft.copies.values()}
    for name, component in list(draft.components.items()):
        if component.status is ComponentStatus.DELETING and name not in used:
            draft.decide("inference component deleted", name, "no copy of it is left")
            del draft.components[name]


def _adopt_update(draft: Draft) -> None:
    """A new config is in force at once: instances of another type leave as their copies move."""
    current, pending = draft.endpoint.current, draft.endpoint.pending
    if current is None or pending is None:
        return
    variant = pending.variants[0]
    fleet = live_instances(draft)
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


def _note_losses(draft: Draft) -> None:
    for instance in list(draft.instances.values()):
        reason = draft.view.lost.get(instance.instance_id)
        if reason is not None:
            draft.stop(instance, reason)


def _create(draft: Draft, settings: EndpointSettings) -> None:
    deployment = draft.endpoint.pending
    if deployment is None:
        _fail(draft, "the endpoint has no deployment")
        return
    variant = deployment.variants[0]
    fleet = live_instances(draft)
    goal = max(variant.desired_instances, bounds_of(variant).minimum)
    for _ in range(goal - len(fleet)):
        reason = f"the endpoint is created with {goal} of variant {variant.name}"
        draft.want_instance(deployment, variant, reason=reason, cause_s=deployment.started_s)
    overdue = _overdue(draft, variant, fleet, settings)
    if overdue is not None:
        _fail(draft, overdue)
    elif sum(i.state is InstanceState.RUNNING for i in fleet) >= goal:
        draft.set_endpoint(
            replace(
                draft.endpoint,
                status=EndpointStatus.IN_SERVICE,
                current=promoted(deployment),
                pending=None,
                failure_reason="",
            )
        )


def _overdue(
    draft: Draft, variant: Variant, fleet: list[Instance], settings: EndpointSettings
) -> str | None:
    limit_s = variant.spec.provision_timeout_s or settings.provision_timeout_s
    for instance in fleet:
        if (
            instance.state is InstanceState.WANTED
            and instance.failure
            and draft.now_s - instance.created_s >= limit_s
        ):
            return failure_reasons.capacity_failure(
                variant.name, f"No capacity came free in {limit_s:.0f} s: {instance.failure}"
            )
    return None


def _fail(draft: Draft, reason: str) -> None:
    draft.set_endpoint(replace(draft.endpoint, status=EndpointStatus.FAILED, failure_reason=reason))
    for instance in list(draft.instances.values()):
        draft.stop(instance, "the endpoint has failed")


# ------------------------------------------------------------------------------- serving


def _serve(draft: Draft, settings: EndpointSettings, shape_of: ShapeOf) -> None:
    deployment = draft.endpoint.current
    assert deployment is not None
    variant = deployment.variants[0]
    slots = slots_of(draft, live_instances(draft), shape_of)
    wanted: list[WantedCopy] = []
    for component in sorted(draft.components.values(), key=lambda c: (c.created_s, c.name)):
        wanted += plan_copies(draft, component.name, slots, settings)
    wanted += _rescued(draft, slots)
    waiting, reasons = _place(draft, wanted, shape_of)
    added = _keep_size(draft, deployment, variant, settings, waiting, shape_of)
    if added:
        waiting, reasons = _place(draft, waiting, shape_of)
    _tell_waiting(draft, variant, waiting, reasons, settings)
    if not waiting:
        _consolidate(draft, variant, settings, shape_of)
    _release_leaving(draft)
    _settle(draft, variant)


def _rescued(draft: Draft, slots: dict[str, Slot]) -> list[WantedCopy]:
    """Copies that wait for an instance that cannot be had now, when another has room by then."""
    found: list[WantedCopy] = []
    running = [
        slots[i.instance_id]
        for i in draft.instances.values()
        if i.state is InstanceState.RUNNING and i.instance_id in slots
    ]
    for copy in list(draft.copies.values()):
        instance = draft.instances.get(copy.instance_id)
        if instance is None or instance.state is not InstanceState.WANTED or not instance.failure:
            continue
        version = version_of(draft, copy)
        if version is None or copy.component is None:
            continue
        request = request_for(copy.component, version)
        if any(slot.fits(request.need) for slot in running):
            del draft.copies[copy.copy_id]
            draft.gone_copies.add(copy.copy_id)
            reason = f"{instance.instance_id} cannot be had: {instance.failure}"
            found.append(WantedCopy(request, version, reason, copy.created_s))
    return found


def _place(
    draft: Draft, wanted: list[WantedCopy], shape_of: ShapeOf
) -> tuple[list[WantedCopy], dict[str, str]]:
    """Instances that run first, then those to come; returns what waits, and why by component."""
    reasons: dict[str, str] = {}
    for running in (True, False):
        if not wanted:
            break
        fleet = live_instances(draft)
        chosen = [i for i in fleet if (i.state is InstanceState.RUNNING) is running]
        slots = slots_of(draft, chosen, shape_of)
        plan = place_copies([each.request for each in wanted], slots)
        by_id = {each.request.copy_id: each for each in wanted}
        for placed in plan.placed:
            _put(draft, by_id.pop(placed.copy_id), placed)
        for waiting in plan.waiting:
            if chosen or not running:
                name = by_id[waiting.copy_id].request.component
                if chosen:
                    reasons[name] = waiting.reason
                else:
                    reasons.setdefault(name, waiting.reason)
        wanted = list(by_id.values())
    return wanted, reasons


def _put(draft: Draft, wanted: WantedCopy, placed: Placed) -> None:
    """The copy's record and its timeline."""
    instance = draft.instances[placed.instance_id]
    version = wanted.version
    assert version.image is not None
    is_new = instance.state is not InstanceState.RUNNING
    where = "a new instance" if is_new else f"instance {instance.instance_id}"
    if placed.from_cache:
        where += ", which holds its image and model"
    copy = CopyRecord(
        copy_id=placed.copy_id,
        instance_id=instance.instance_id,
        account=instance.account,
        endpoint_uid=instance.endpoint_uid,
        endpoint=instance.endpoint,
        variant=instance.variant,
        deployment_id=version.version_id,
        created_s=draft.now_s,
        manifest_digest=version.image.manifest_digest,
        component=wanted.request.component,
        accelerators=tuple(int(index) for index in placed.accelerators),
    )
    draft.copies[copy.copy_id] = copy
    draft.timelines[copy.copy_id] = TimelineRecord(
        copy_id=copy.copy_id,
        instance_id=copy.instance_id,
        account=copy.account,
        endpoint_uid=copy.endpoint_uid,
        endpoint=copy.endpoint,
        variant=copy.variant,
        deployment_id=copy.deployment_id,
        instance_type=instance.instance_type,
        began_s=wanted.cause_s,
        component=copy.component,
        new_instance=is_new,
        reason=wanted.reason,
        stages=(
            StageRecord(
                Stage.DETECT, wanted.cause_s, draft.now_s, detail=f"{wanted.reason}; on {where}"
            ),
        ),
    )
    draft.decide("copy placed", copy.copy_id, f"{wanted.reason}; on {where}")


def _tell_waiting(
    draft: Draft,
    variant: Variant,
    waiting: list[WantedCopy],
    reasons: dict[str, str],
    settings: EndpointSettings,
) -> None:
    bounds = bounds_of(variant)
    limit_s = variant.spec.provision_timeout_s or settings.provision_timeout_s
    managed = variant.spec.managed_scaling
    limit = (
        f"MaxInstanceCount is {bounds.maximum}"
        if managed is not None and managed.enabled
        else _FIXED_BY_USER.format(bounds.maximum)
    )
    texts = {
        each.request.component: f"{NO_ROOM} {reasons.get(each.request.component, '')}; {limit}."
        for each in waiting
    }
    for copy in draft.copies.values():
        instance = draft.instances.get(copy.instance_id)
        if instance is not None and instance.state is InstanceState.WANTED and instance.failure:
            texts.setdefault(copy.component or "", f"{NO_ROOM} {instance.failure}")
    for name, component in list(draft.components.items()):
        if name not in texts:
            if component.waiting.startswith(NO_ROOM):
                note_waiting(draft, name, "")
            continue
        note_waiting(draft, name, texts[name])
        component = draft.components[name]
        since_s = component.waiting_since_s
        busy = (ComponentStatus.CREATING, ComponentStatus.UPDATING)
        if component.status in busy and since_s is not None and draft.now_s - since_s >= limit_s:
            fail_version(draft, name, component.waiting)


# ------------------------------------------------------------------------------- instances


def _keep_size(
    draft: Draft,
    deployment: Deployment,
    variant: Variant,
    settings: EndpointSettings,
    waiting: list[WantedCopy],
    shape_of: ShapeOf,
) -> int:
    """Add instances for what waits, release idle ones; returns how many were added."""
    fleet = live_instances(draft)
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
        for i in live_instances(draft)
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


def _consolidate(
    draft: Draft, variant: Variant, settings: EndpointSettings, shape_of: ShapeOf
) -> None:
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
    slots = slots_of(draft, live_instances(draft), shape_of)
    needs = {c.name: requirement_of(c.current.spec) for c in components}
    chosen = plan_consolidation(
        slots, needs, max_step=managed.max_step, minimum=bounds_of(variant).minimum
    )
    for instance_id in chosen:
        reason = "its copies fit on the other instances"
        draft.instances[instance_id] = replace(draft.instances[instance_id], leaving=reason)
        draft.decide("instance consolidated", instance_id, reason)


def _release_leaving(draft: Draft) -> None:
    held = {copy.instance_id for copy in draft.copies.values()}
    for instance in list(draft.instances.values()):
        if instance.leaving and instance.instance_id not in held:
            draft.drain(instance, instance.leaving)


def _settle(draft: Draft, variant: Variant) -> None:
    """An update of the endpoint has ended when no instance is to leave and enough run."""
    if draft.endpoint.status not in (EndpointStatus.UPDATING, EndpointStatus.ROLLING_BACK):
        return
    deployment = draft.endpoint.current
    assert deployment is not None
    fleet = live_instances(draft)
    running = sum(i.state is InstanceState.RUNNING for i in fleet)
    bounds = bounds_of(variant)
    if any(i.leaving for i in draft.instances.values()):
        return
    if running < len(fleet) or not bounds.minimum <= running <= bounds.maximum:
        return
    draft.set_endpoint(replace(draft.endpoint, status=EndpointStatus.IN_SERVICE, failure_reason=""))


def _count(draft: Draft) -> None:
    """Instance counts follow the instances; where they are managed, the desired one too."""
    fleet = live_instances(draft)
    running = sum(
        i.state is InstanceState.RUNNING and i.instance_id not in draft.view.lost for i in fleet
    )
    for deployment in (draft.endpoint.current, draft.endpoint.pending):
        if deployment is None:
            continue
        variant = deployment.variants[0]
        managed = variant.spec.managed_scaling
        is_managed = managed is not None and managed.enabled
        if is_managed and deployment is draft.endpoint.current:
            variant = replace(variant, desired_instances=len(fleet))
        variant = replace(variant, current_instances=running, current_weight=variant.desired_weight)
        draft.set_deployment(replace(deployment, variants=(variant,)))
