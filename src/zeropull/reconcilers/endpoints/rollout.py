"""Decides the next step of an update to a new deployment: blue/green or rolling.

Traffic share is capacity share: `shifted_instances` of the new fleet are in rotation, and as large
a part of the old fleet is not. The old fleet is kept until the last step has been waited for, so
that going back is only a matter of routes.
"""

from __future__ import annotations

import math
from dataclasses import replace

from zeropull.reconcilers.endpoints.fleet import ensure_fleet, is_resolved
from zeropull.reconcilers.plan import Draft
from zeropull.reconcilers.updating import next_batch, rollback_reason
from zeropull.resources.endpoints import (
    Deployment,
    Endpoint,
    EndpointStatus,
    Variant,
    VariantPhase,
    VariantStatus,
)
from zeropull.resources.instances import InstanceState
from zeropull.resources.settings import EndpointSettings


def plan_update(draft: Draft, settings: EndpointSettings) -> None:
    """One pass over the pending deployment of an endpoint that already serves."""
    pending = draft.endpoint.pending
    assert pending is not None
    back = rollback_reason(
        draft, pending.policy, pending.started_s, is_shifting=pending.shifted_s is not None
    )
    if back is not None:
        roll_back(draft, back)
        return
    goal = {v.name: _next_step(pending, v) for v in pending.variants}
    is_rolling = pending.policy.rolling is not None
    reason = ensure_fleet(
        draft, pending, settings, cause_s=pending.started_s, sizes=goal if is_rolling else None
    )
    if reason is not None:
        roll_back(draft, reason)
        return
    pending = _with_statuses(draft)
    if is_resolved(pending):
        _shift(draft, pending, goal)


def old_sizes(draft: Draft) -> dict[str, int] | None:
    """How many old instances a rolling update still keeps, by variant; None when none runs.

    Without room for a batch beside the old fleet, as many old instances leave before it.
    """
    endpoint = draft.endpoint
    pending, current = endpoint.pending, endpoint.current
    if pending is None or current is None or pending.policy.rolling is None:
        return None
    sizes = {}
    for old in current.variants:
        new = pending.variant(old.name)
        if new is None:
            sizes[old.name] = old.desired_instances
            continue
        starved = sum(
            i.state is InstanceState.WANTED and bool(i.failure) for i in draft.fleet(pending, new)
        )
        gone = math.floor(old.desired_instances * new.shifted_instances / new.desired_instances)
        sizes[old.name] = max(0, old.desired_instances - gone - starved)
    return sizes


def roll_back(draft: Draft, reason: str) -> None:
    """Forget the new deployment; its instances drain, the old fleet takes all traffic again."""
    draft.decide("update rolled back", draft.endpoint.name, reason)
    draft.set_endpoint(
        replace(
            draft.endpoint,
            status=EndpointStatus.ROLLING_BACK,
            pending=None,
            failure_reason=reason,
        )
    )


def instances_in_rotation(endpoint: Endpoint, variant: str, old_count: int) -> tuple[int, int]:
    """How many instances of the old and of the new fleet take traffic for this variant."""
    pending = endpoint.pending
    if endpoint.current is None:
        return 0, 1 << 30  # a creation: whatever is healthy
    if pending is None:
        return old_count, 0
    new = pending.variant(variant)
    if new is None:
        done = all(v.shifted_instances >= v.desired_instances for v in pending.variants)
        return (0 if done else old_count), 0
    if new.shifted_instances >= new.desired_instances:
        return 0, new.shifted_instances
    share = new.shifted_instances / new.desired_instances
    return max(1, old_count - math.floor(old_count * share)), new.shifted_instances


def _shift(draft: Draft, pending: Deployment, goal: dict[str, int]) -> None:
    view = draft.view
    healthy = {
        v.name: sum(view.is_healthy(i) for i in draft.fleet(pending, v)) for v in pending.variants
    }
    interval_s, termination_s = _waits_s(pending)
    waited_s = math.inf if pending.shifted_s is None else draft.now_s - pending.shifted_s
    told = view.gateways.acknowledged or not view.gateways.up
    if all(v.shifted_instances >= v.desired_instances for v in pending.variants):
        in_service = all(
            draft.ready_count(pending, v) >= v.desired_instances for v in pending.variants
        )
        if in_service and told and waited_s >= interval_s + termination_s:
            draft.enter_service(pending)
        return
    if any(healthy[name] < count for name, count in goal.items()):
        return
    if pending.policy.rolling is None and any(
        healthy[v.name] < v.desired_instances for v in pending.variants
    ):
        return
    if waited_s < interval_s or not told:
        return
    variants = tuple(
        replace(
            v,
            shifted_instances=goal[v.name],
            statuses=(VariantStatus(VariantPhase.BAKING, began_s=draft.now_s),),
        )
        for v in pending.variants
    )
    draft.decide("traffic shifted", draft.endpoint.name, f"new instances in rotation: {goal}")
    draft.set_deployment(replace(pending, variants=variants, shifted_s=draft.now_s))


def _next_step(pending: Deployment, variant: Variant) -> int:
    """How many new instances are in rotation after the next step."""
    wanted, shifted = variant.desired_instances, variant.shifted_instances
    if pending.policy.rolling is not None:
        return next_batch(pending.policy.rolling.batch, shifted, wanted)
    policy = pending.policy.blue_green
    if policy is None:
        return wanted
    match policy.shift:
        case "CANARY" if policy.canary is not None and shifted == 0 and wanted > 1:
            return next_batch(policy.canary, 0, wanted)
        case "LINEAR" if policy.linear_step is not None:
            return next_batch(policy.linear_step, shifted, wanted)
        case _:
            return wanted


def _waits_s(pending: Deployment) -> tuple[float, float]:
    if pending.policy.rolling is not None:
        return pending.policy.rolling.wait_interval_s, 0.0
    policy = pending.policy.blue_green
    return (policy.wait_interval_s, policy.termination_wait_s) if policy else (0.0, 0.0)


def _with_statuses(draft: Draft) -> Deployment:
    """VariantStatus while the new fleet comes up; it says so when there is no room for it."""
    pending = draft.endpoint.pending
    assert pending is not None
    for variant in pending.variants:
        if variant.shifted_instances:
            continue
        lacking = next((i.failure for i in draft.fleet(pending, variant) if i.failure), "")
        before = variant.statuses[0] if variant.statuses else None
        if before is None or before.message != lacking:
            began_s = before.began_s if before else draft.now_s
            status = VariantStatus(VariantPhase.CREATING, lacking, began_s)
            pending = draft.set_variant(pending, replace(variant, statuses=(status,)))
    return pending
