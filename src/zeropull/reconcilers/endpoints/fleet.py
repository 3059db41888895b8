"""Keeps one deployment's instances at their size: what is broken is replaced, with backoff."""

from __future__ import annotations

from zeropull.reconcilers import failure_reasons
from zeropull.reconcilers.failing import (
    MAX_ATTEMPTS,
    capacity_overdue,
    instance_breakage,
)
from zeropull.reconcilers.leaving import let_go
from zeropull.reconcilers.plan import Draft, Effect
from zeropull.resources.endpoints import Deployment, EndpointStatus, Variant
from zeropull.resources.instances import Instance
from zeropull.resources.settings import EndpointSettings


def is_resolved(deployment: Deployment) -> bool:
    """Whether every image reference of the deployment has its digest."""
    return all(
        {c.image for c in v.containers} <= {i.reference for i in v.images}
        for v in deployment.variants
    )


def ensure_fleet(
    draft: Draft,
    deployment: Deployment,
    settings: EndpointSettings,
    *,
    cause_s: float,
    is_serving: bool = False,
    sizes: dict[str, int] | None = None,
) -> str | None:
    """Ask for digests, replace what is broken, add what is missing, drain what is too much.

    `sizes` overrides the desired instances by variant (batches of a rolling update). Returns the
    reason why the deployment cannot succeed, None while it can.
    """
    if not is_resolved(deployment):
        failure = draft.view.resolve_failures.get(deployment.deployment_id)
        if failure is not None:
            return failure
        draft.act(Effect.RESOLVE, deployment.deployment_id, "a new deployment")
        return None
    for variant in deployment.variants:
        wanted = variant.desired_instances if sizes is None else sizes[variant.name]
        reason = _replace_broken(
            draft, deployment, variant, settings, wanted=wanted, is_serving=is_serving
        )
        if reason is None and len(draft.fleet(deployment, variant)) <= wanted:
            reason = capacity_overdue(draft, variant, draft.fleet(deployment, variant), settings)
        if reason is not None:
            return reason
        fleet = draft.fleet(deployment, variant)
        for _ in range(wanted - len(fleet)):
            draft.want_instance(
                deployment,
                variant,
                reason=_why(draft, variant, len(fleet), wanted),
                cause_s=cause_s if variant.cause_s is None else variant.cause_s,
            )
        for victim in _victims(draft, fleet, len(fleet) - wanted):
            draft.drain(victim, f"scale in from {len(fleet)} to {wanted} instances")
    return None


def _replace_broken(
    draft: Draft,
    deployment: Deployment,
    variant: Variant,
    settings: EndpointSettings,
    *,
    wanted: int,
    is_serving: bool,
) -> str | None:
    for instance in draft.fleet(deployment, variant):
        broken = instance_breakage(draft, instance, settings)
        if broken is None:
            continue
        was_good = (
            instance.running_s is not None
            and draft.now_s - instance.running_s >= settings.retry_max_s
        )
        attempts = 1 if was_good else instance.attempts + 1
        if not is_serving and broken.verdict is not None:
            return broken.verdict
        if attempts > MAX_ATTEMPTS and (
            not is_serving or draft.endpoint.status is EndpointStatus.UPDATING
        ):
            return broken.verdict or failure_reasons.instance_failure(variant.name, broken.text)
        if len(draft.fleet(deployment, variant)) <= wanted:
            delay_s = 0.0 if was_good else settings.backoff.after(attempts)
            draft.want_instance(
                deployment,
                variant,
                reason=f"replaces {instance.instance_id}: {broken.text}",
                cause_s=draft.now_s,
                attempts=attempts,
                not_before_s=draft.now_s + delay_s,
            )
        let_go(draft, instance, broken.text)
    return None


def _victims(draft: Draft, fleet: list[Instance], count: int) -> list[Instance]:
    """Those that cost least: not serving yet, then fewest requests in flight, then the newest."""
    if count <= 0:
        return []
    order = sorted(
        fleet,
        key=lambda i: (draft.view.is_ready(i), draft.view.in_flight(i), -i.created_s),
    )
    return order[:count]


def _why(draft: Draft, variant: Variant, found: int, wanted: int) -> str:
    match draft.endpoint.status:
        case EndpointStatus.CREATING:
            return f"the endpoint is created with {wanted} of variant {variant.name}"
        case EndpointStatus.UPDATING if draft.endpoint.pending is not None:
            return f"an update of variant {variant.name} needs {wanted}"
        case _ if variant.cause:
            return (
                f"variant {variant.name} is to have {wanted}, there were {found}: {variant.cause}"
            )
        case _:
            return f"variant {variant.name} is to have {wanted}, there were {found}"
