"""Keeps the deployment that serves at its size, and changes its size. Pure."""

from __future__ import annotations

from dataclasses import replace

from zeropull.reconcilers.endpoints.fleet import ensure_fleet
from zeropull.reconcilers.endpoints.rollout import old_sizes, plan_update
from zeropull.reconcilers.plan import Draft
from zeropull.resources.endpoints import Deployment, EndpointStatus
from zeropull.resources.settings import EndpointSettings


def serve_deployments(draft: Draft, settings: EndpointSettings) -> None:
    """The serving fleet, whatever else goes on, then the update or the change of its size."""
    assert draft.endpoint.current is not None
    _keep(draft, draft.endpoint.current, settings)
    if draft.endpoint.pending is not None:
        plan_update(draft, settings)
    elif draft.endpoint.status in (EndpointStatus.UPDATING, EndpointStatus.ROLLING_BACK):
        _finish_scaling(draft)


def _keep(draft: Draft, deployment: Deployment, settings: EndpointSettings) -> None:
    """Failures of what serves end no endpoint."""
    reason = ensure_fleet(
        draft,
        deployment,
        settings,
        cause_s=draft.endpoint.modified_s,
        is_serving=True,
        sizes=old_sizes(draft),
    )
    if reason is not None and draft.endpoint.status is EndpointStatus.UPDATING:
        if draft.endpoint.pending is None:
            _roll_back_scaling(draft, reason)
    elif reason is not None:
        draft.endpoint = replace(draft.endpoint, failure_reason=reason)


def _finish_scaling(draft: Draft) -> None:
    deployment = draft.endpoint.current
    assert deployment is not None
    for variant in deployment.variants:
        if len(draft.fleet(deployment, variant)) != variant.desired_instances:
            return
        if draft.ready_count(deployment, variant) < variant.desired_instances:
            return
    if draft.view.gateways.up and not draft.view.gateways.acknowledged:
        return
    is_back = draft.endpoint.status is EndpointStatus.ROLLING_BACK
    draft.enter_service(deployment, draft.endpoint.failure_reason if is_back else "")


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
