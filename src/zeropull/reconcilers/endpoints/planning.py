"""Decides what happens next to one endpoint: pure, from a view and the time.

Life of an instance: wanted -> launched -> its copies healthy -> in rotation -> draining -> stopping
-> gone. Every rule here only looks at what is, so that it may be run again after a crash anywhere.
"""

from __future__ import annotations

from dataclasses import replace

from zeropull.reconcilers.endpoint_view import View
from zeropull.reconcilers.endpoints.fleet import (
    ensure_fleet,
    is_resolved,
    live,
    promoted,
    ready_count,
)
from zeropull.reconcilers.endpoints.rollout import old_sizes, plan_update
from zeropull.reconcilers.plan import Draft, Effect
from zeropull.resources.endpoints import Deployment, EndpointStatus
from zeropull.resources.instances import InstanceState
from zeropull.resources.settings import EndpointSettings

STOP_LIMIT_S = 40.0  # SIGTERM, 30 s, SIGKILL, and what the node needs to say so


def plan_endpoint(view: View, now_s: float, settings: EndpointSettings) -> Draft:
    """What to write and to do now; an empty draft when everything is as it should be."""
    draft = Draft(view, now_s)
    match view.endpoint.status:
        case EndpointStatus.DELETING:
            _plan_delete(draft, settings)
        case EndpointStatus.FAILED:
            for instance in list(draft.instances.values()):
                draft.stop(instance, "the endpoint has failed")
        case _:
            _plan_deployments(draft, settings)
    plan_leaving(draft, settings)
    plan_launches(draft)
    _count_current(draft)
    if view.endpoint.status is EndpointStatus.DELETING and not draft.instances:
        draft.is_gone = not view.has_cache
    return draft


# ------------------------------------------------------------------------------ the three statuses


def _plan_delete(draft: Draft, settings: EndpointSettings) -> None:
    for instance in list(draft.instances.values()):
        if instance.state is InstanceState.WANTED:
            draft.stop(instance, "the endpoint is deleted")
        else:
            draft.drain(instance, "the endpoint is deleted")


def _plan_deployments(draft: Draft, settings: EndpointSettings) -> None:
    view = draft.view
    known = {d.deployment_id for d in (view.endpoint.current, view.endpoint.pending) if d}
    for instance in list(draft.instances.values()):
        if instance.deployment_id not in known:
            draft.drain(instance, "its deployment has been replaced")
    if view.endpoint.current is None:
        _plan_creation(draft, settings)
        return
    _plan_current(draft, view.endpoint.current, settings)
    if draft.endpoint.pending is not None:
        plan_update(draft, settings)
    elif draft.endpoint.status in (EndpointStatus.UPDATING, EndpointStatus.ROLLING_BACK):
        _finish_scaling(draft, settings)


def _plan_creation(draft: Draft, settings: EndpointSettings) -> None:
    deployment = draft.endpoint.pending
    if deployment is None:
        _fail(draft, "the endpoint has no deployment")
        return
    reason = ensure_fleet(draft, deployment, settings, cause_s=deployment.started_s)
    if reason is not None:
        _fail(draft, reason)
        return
    deployment = draft.endpoint.pending
    assert deployment is not None
    if not is_resolved(deployment):
        return
    if all(ready_count(draft, deployment, v) >= v.desired_instances for v in deployment.variants):
        draft.set_endpoint(
            replace(
                draft.endpoint,
                status=EndpointStatus.IN_SERVICE,
                current=promoted(deployment),
                pending=None,
                failure_reason="",
            )
        )


def _plan_current(draft: Draft, deployment: Deployment, settings: EndpointSettings) -> None:
    """Keep the serving fleet at its size, whatever else goes on; its failures end no endpoint."""
    cause_s = draft.endpoint.modified_s
    sizes = old_sizes(draft)
    reason = ensure_fleet(
        draft, deployment, settings, cause_s=cause_s, is_serving=True, sizes=sizes
    )
    if reason is not None and draft.endpoint.status is EndpointStatus.UPDATING:
        if draft.endpoint.pending is None:
            _roll_back_scaling(draft, reason)
    elif reason is not None:
        draft.endpoint = replace(draft.endpoint, failure_reason=reason)


def _finish_scaling(draft: Draft, settings: EndpointSettings) -> None:
    deployment = draft.endpoint.current
    assert deployment is not None
    for variant in deployment.variants:
        fleet = live(draft, deployment, variant)
        if len(fleet) != variant.desired_instances:
            return
        if ready_count(draft, deployment, variant) < variant.desired_instances:
            return
    if draft.view.gateways.up and not draft.view.gateways.acknowledged:
        return
    reason = (
        draft.endpoint.failure_reason
        if draft.endpoint.status is EndpointStatus.ROLLING_BACK
        else ""
    )
    draft.set_endpoint(
        replace(
            draft.endpoint,
            status=EndpointStatus.IN_SERVICE,
            current=promoted(deployment),
            failure_reason=reason,
        )
    )


def _roll_back_scaling(draft: Draft, reason: str) -> None:
    deployment = draft.endpoint.current
    assert deployment is not None
    variants = tuple(
        replace(v, desired_instances=max(1, min(v.desired_instances, v.current_instances)))
        for v in deployment.variants
    )
    draft.set_deployment(replace(deployment, variants=variants))
    draft.set_endpoint(
        replace(draft.endpoint, status=EndpointStatus.ROLLING_BACK, failure_reason=reason)
    )


def _fail(draft: Draft, reason: str) -> None:
    draft.set_endpoint(replace(draft.endpoint, status=EndpointStatus.FAILED, failure_reason=reason))
    for instance in list(draft.instances.values()):
        draft.stop(instance, "the endpoint has failed")


# --------------------------------------------------------------------------- leaving and launching


def plan_leaving(draft: Draft, settings: EndpointSettings) -> None:
    view = draft.view
    deleting = view.endpoint.status is EndpointStatus.DELETING
    limit_s = settings.delete_drain_s if deleting else settings.drain_s
    for instance in list(draft.instances.values()):
        if instance.state is InstanceState.DRAINING:
            began_s = instance.draining_s if instance.draining_s is not None else draft.now_s
            waited_s = draft.now_s - began_s
            # The plan that started the drain ran before routes without it were published.
            told = waited_s > 0 and (view.gateways.acknowledged or not view.gateways.up)
            idle = not view.gateways.up or view.in_flight(instance) == 0
            if instance.instance_id in view.lost:
                draft.stop(instance, "its node is gone")
            elif told and idle:
                draft.stop(instance, "drained: no request is left")
            elif waited_s >= limit_s:
                draft.stop(instance, f"drained for {limit_s:.0f} s, which is the limit")
        elif instance.state is InstanceState.TERMINATING:
            began_s = instance.terminating_s if instance.terminating_s is not None else draft.now_s
            ended = all(c.copy_id in view.stopped for c in draft.copies_on(instance))
            if (
                ended
                or instance.launched_s is None
                or instance.instance_id in view.lost
                or draft.now_s - began_s >= STOP_LIMIT_S
            ):
                draft.act(Effect.TERMINATE, instance.instance_id, "its containers have stopped")


def plan_launches(draft: Draft) -> None:
    for instance in draft.instances.values():
        due = instance.next_attempt_s is None or instance.next_attempt_s <= draft.now_s
        if instance.state is InstanceState.LAUNCHING or (
            instance.state is InstanceState.WANTED and due
        ):
            draft.act(Effect.LAUNCH, instance.instance_id, instance.reason)


def _count_current(draft: Draft) -> None:
    """CurrentInstanceCount and CurrentWeight follow what is in service."""
    for deployment in (draft.endpoint.current, draft.endpoint.pending):
        if deployment is None:
            continue
        variants = tuple(
            replace(
                v,
                current_instances=ready_count(draft, deployment, v),
                current_weight=v.desired_weight
                if deployment is draft.endpoint.current
                else v.current_weight,
            )
            for v in deployment.variants
        )
        draft.set_deployment(replace(deployment, variants=variants))
