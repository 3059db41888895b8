"""Decides what happens next on an endpoint with inference components that serves: pure.

Copies are placed first on instances that run, then on those that are on their way, and only what
fits on neither makes new instances. Deleting the endpoint deletes its components: none survives it
with a name that is taken and nowhere to run.
"""

from __future__ import annotations

from dataclasses import replace

from zeropull.placement.capacity import Slot
from zeropull.placement.placing import Placed, place_copies
from zeropull.reconcilers.components.copies import WantedCopy, plan_copies
from zeropull.reconcilers.components.instances import (
    bounds_of,
    consolidate,
    keep_size,
    release_leaving,
    settle,
)
from zeropull.reconcilers.components.slots import ShapeOf, request_for, slots_of, version_of
from zeropull.reconcilers.components.versions import fail_version, note_waiting
from zeropull.reconcilers.endpoint_view import live_instances
from zeropull.reconcilers.failing import provision_limit_s
from zeropull.reconcilers.plan import Draft
from zeropull.resources.components import ComponentStatus
from zeropull.resources.endpoints import Variant
from zeropull.resources.instances import CopyRecord, InstanceState
from zeropull.resources.settings import EndpointSettings

NO_ROOM = (
    "There is not enough hardware resources on the instances for this endpoint to create a copy of "
    "the inference component."
)
_FIXED_BY_USER = "ManagedInstanceScaling is not enabled, and the variant has {0} instance(s)"


def serve_components(draft: Draft, settings: EndpointSettings, shape_of: ShapeOf) -> None:
    """Copies of every component, then the instances that they need."""
    deployment = draft.endpoint.current
    assert deployment is not None
    variant = deployment.variants[0]
    slots = slots_of(draft, live_instances(draft.instances.values()), shape_of)
    wanted: list[WantedCopy] = []
    for component in sorted(draft.components.values(), key=lambda c: (c.created_s, c.name)):
        wanted += plan_copies(draft, component.name, slots, settings)
    wanted += _rescued(draft, slots)
    waiting, reasons = _place(draft, wanted, shape_of)
    added = keep_size(draft, deployment, variant, settings, waiting, shape_of)
    if added:
        waiting, reasons = _place(draft, waiting, shape_of)
    _tell_waiting(draft, variant, waiting, reasons, settings)
    if not waiting:
        consolidate(draft, variant, shape_of)
    release_leaving(draft)
    settle(draft, variant)


def delete_components(draft: Draft) -> None:
    """All of them go with their endpoint."""
    for name, component in list(draft.components.items()):
        if component.status is not ComponentStatus.DELETING:
            draft.components[name] = replace(
                component, status=ComponentStatus.DELETING, modified_s=draft.now_s
            )


def drop_deleted(draft: Draft) -> None:
    """Components that are deleted go with their last copy."""
    used = {copy.component for copy in draft.copies.values()}
    for name, component in list(draft.components.items()):
        if component.status is ComponentStatus.DELETING and name not in used:
            draft.decide("inference component deleted", name, "no copy of it is left")
            del draft.components[name]


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
            reason = f"{instance.instance_id} cannot be had: {instance.failure}"
            draft.drop_copy(copy, reason)
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
        fleet = live_instances(draft.instances.values())
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
    instance = draft.instances[placed.instance_id]
    version = wanted.version
    assert version.image is not None
    is_new = instance.state is not InstanceState.RUNNING
    where = "; on a new instance" if is_new else f"; on instance {instance.instance_id}"
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
    draft.add_copy(instance, copy, reason=wanted.reason, cause_s=wanted.cause_s, where=where)
    draft.decide("copy placed", copy.copy_id, wanted.reason + where)


def _tell_waiting(
    draft: Draft,
    variant: Variant,
    waiting: list[WantedCopy],
    reasons: dict[str, str],
    settings: EndpointSettings,
) -> None:
    bounds = bounds_of(variant)
    limit_s = provision_limit_s(variant, settings)
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
