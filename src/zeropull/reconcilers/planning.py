"""Decides what happens next to one endpoint: pure, from a view and the time.

One planner for every endpoint. It decides about creation, deletion, failure, launches and how what
must go leaves. The two kinds of endpoints differ in the unit that is counted, and only there:

- `endpoints`: instances of a deployment. All containers of an instance come and go with it, and an
  update moves traffic from one fleet to another.
- `components`: copies of each component, which are placed on instances that they share.

Life of an instance: wanted -> launched -> its copies healthy -> in rotation -> draining -> stopping
-> gone. Every rule only looks at what is, so that it may be run again after a crash anywhere.
"""

from __future__ import annotations

from dataclasses import replace

from zeropull.reconcilers.components.instances import adopt_update, bounds_of, note_losses
from zeropull.reconcilers.components.planning import (
    delete_components,
    drop_deleted,
    serve_components,
)
from zeropull.reconcilers.components.slots import ShapeOf
from zeropull.reconcilers.endpoint_view import View
from zeropull.reconcilers.endpoints.fleet import ensure_fleet, is_resolved
from zeropull.reconcilers.endpoints.serving import serve_deployments
from zeropull.reconcilers.failing import fail_endpoint, is_due, stop_all
from zeropull.reconcilers.leaving import delete_all, plan_leaving
from zeropull.reconcilers.plan import Draft, Effect
from zeropull.resources.endpoints import Deployment, EndpointStatus, Variant
from zeropull.resources.instances import InstanceState
from zeropull.resources.settings import EndpointSettings

_ENDED = (EndpointStatus.DELETING, EndpointStatus.FAILED)


def plan_endpoint(view: View, now_s: float, settings: EndpointSettings, shape_of: ShapeOf) -> Draft:
    """What to write and to do now; an empty draft when everything is as it should be.

    `shape_of`: what an instance type offers to copies of components, None for an unknown type.
    """
    draft = Draft(view, now_s)
    match view.endpoint.status:
        case EndpointStatus.DELETING:
            delete_components(draft)
            delete_all(draft)
        case EndpointStatus.FAILED:
            stop_all(draft)
        case _:
            _plan_deployments(draft, settings, shape_of)
    _tell_waiting(draft)
    plan_leaving(draft, settings)
    drop_deleted(draft)
    _plan_launches(draft, settings)
    _count(draft)
    if view.endpoint.status is EndpointStatus.DELETING and not draft.instances:
        draft.components.clear()
        draft.is_gone = not view.has_cache
    return draft


def _plan_deployments(draft: Draft, settings: EndpointSettings, shape_of: ShapeOf) -> None:
    newest = draft.endpoint.newest
    if newest is None:
        fail_endpoint(draft, "the endpoint has no deployment")
        return
    if newest.is_component_based:
        adopt_update(draft)
    known = {d.deployment_id for d in (draft.endpoint.current, draft.endpoint.pending) if d}
    for instance in list(draft.instances.values()):
        if instance.deployment_id not in known:
            draft.drain(instance, "its deployment has been replaced")
    if draft.endpoint.current is None:
        _create(draft, newest, settings)
    elif newest.is_component_based:
        note_losses(draft)
        serve_components(draft, settings, shape_of)
    else:
        serve_deployments(draft, settings)
    _note_outage(draft)


def plan_removal(view: View, now_s: float) -> Draft:
    """End everything of the endpoint without looking at what it is: for one whose documents no
    other plan can read, and that is to go."""
    draft = Draft(view, now_s)
    for instance in list(draft.instances.values()):
        draft.stop(instance, "the endpoint goes, though it cannot be planned")
        draft.act(Effect.TERMINATE, instance.instance_id, "the endpoint goes")
    if view.endpoint.status is EndpointStatus.DELETING and not draft.instances:
        draft.components.clear()
        draft.is_gone = not view.has_cache
    return draft


def _note_outage(draft: Draft) -> None:
    """An endpoint is out of service while no instance of it runs."""
    deployment = draft.endpoint.current
    if deployment is None:
        return
    fleet = [i for v in deployment.variants for i in draft.fleet(deployment, v)]
    if draft.endpoint.status is EndpointStatus.IN_SERVICE:
        is_wanted = any(v.desired_instances for v in deployment.variants)
        if is_wanted and not any(draft.view.runs(i) for i in fleet):
            lost = next(iter(draft.view.lost.values()), "no instance runs")
            out = EndpointStatus.OUT_OF_SERVICE
            draft.set_endpoint(replace(draft.endpoint, status=out, failure_reason=lost))
    elif draft.endpoint.status is EndpointStatus.OUT_OF_SERVICE and any(
        draft.view.is_heard(i) and draft.view.is_ready(i) for i in fleet
    ):
        back = EndpointStatus.IN_SERVICE
        draft.set_endpoint(replace(draft.endpoint, status=back, failure_reason=""))


def _tell_waiting(draft: Draft) -> None:
    """What the endpoint lacks, for people; "" when it lacks nothing."""
    texts = []
    for deployment in (draft.endpoint.current, draft.endpoint.pending):
        if deployment is None or draft.endpoint.status in _ENDED:
            continue
        if deployment.deployment_id in draft.view.resolve_waits:
            texts.append(draft.view.resolve_waits[deployment.deployment_id])
        for variant in deployment.variants:
            wanted = [
                i
                for i in draft.fleet(deployment, variant)
                if i.state is InstanceState.WANTED and i.failure
            ]
            if wanted:
                texts.append(
                    f"{len(wanted)} instance(s) of variant {variant.name} cannot be had now: "
                    f"{wanted[0].failure}"
                )
    if draft.announces and not draft.view.gateways.up:
        texts.append("no gateway has reported that it has the routes")
    text = "; ".join(texts)
    if text != draft.endpoint.waiting:
        draft.endpoint = replace(draft.endpoint, waiting=text)
        if text:
            draft.decide("endpoint waits", draft.endpoint.name, text)


def _create(draft: Draft, deployment: Deployment, settings: EndpointSettings) -> None:
    sizes = {v.name: max(v.desired_instances, _minimum(v)) for v in deployment.variants}
    reason = ensure_fleet(draft, deployment, settings, cause_s=deployment.started_s, sizes=sizes)
    if reason is not None:
        fail_endpoint(draft, reason)
    elif is_resolved(deployment) and all(
        draft.ready_count(deployment, v) >= sizes[v.name] for v in deployment.variants
    ):
        assert draft.endpoint.pending is not None
        # The gateways first: who reads InService may invoke at once.
        draft.announces = True
        if draft.view.is_announced:
            draft.enter_service(draft.endpoint.pending)


def _plan_launches(draft: Draft, settings: EndpointSettings) -> None:
    for instance in draft.instances.values():
        due = is_due(instance.next_attempt_s, draft.now_s, settings)
        if instance.state is InstanceState.LAUNCHING or (
            instance.state is InstanceState.WANTED and due
        ):
            draft.act(Effect.LAUNCH, instance.instance_id, instance.reason)


def _count(draft: Draft) -> None:
    """CurrentInstanceCount and CurrentWeight follow what is in service; where instances follow
    copies, the desired count follows the instances."""
    for deployment in (draft.endpoint.current, draft.endpoint.pending):
        if deployment is None:
            continue
        variants = []
        for variant in deployment.variants:
            variant = replace(variant, current_instances=draft.ready_count(deployment, variant))
            if deployment is draft.endpoint.current:
                variant = replace(variant, current_weight=variant.desired_weight)
                if variant.spec.managed_scaling and variant.spec.managed_scaling.enabled:
                    fleet = draft.fleet(deployment, variant)
                    variant = replace(variant, desired_instances=len(fleet))
            variants.append(variant)
        draft.set_deployment(replace(deployment, variants=tuple(variants)))


def _minimum(variant: Variant) -> int:
    return bounds_of(variant).minimum if variant.spec.model_name is None else 0
