"""Keeps one deployment's instances at their size: what is broken is replaced, with backoff."""

from __future__ import annotations

from dataclasses import replace

from zeropull.controlapi.messages import CopyState
from zeropull.reconcilers import failure_reasons
from zeropull.reconcilers.endpoint_view import LIVE_STATES
from zeropull.reconcilers.plan import Draft, Effect
from zeropull.resources.endpoints import Deployment, EndpointStatus, Variant
from zeropull.resources.instances import Instance, InstanceState
from zeropull.resources.settings import EndpointSettings

MAX_ATTEMPTS = 3  # broken instances in a row until a creation or a scale-out is given up


def is_resolved(deployment: Deployment) -> bool:
    """Whether every image reference of the deployment has its digest."""
    return all(
        {c.image for c in v.containers} <= {i.reference for i in v.images}
        for v in deployment.variants
    )


def ready_count(draft: Draft, deployment: Deployment, variant: Variant) -> int:
    return sum(draft.view.is_ready(i) for i in live(draft, deployment, variant))


def promoted(deployment: Deployment) -> Deployment:
    """The deployment as the serving one: what was wanted is what is."""
    variants = tuple(
        replace(
            v,
            current_instances=v.desired_instances,
            current_weight=v.desired_weight,
            shifted_instances=0,
            statuses=(),
        )
        for v in deployment.variants
    )
    return replace(deployment, variants=variants, shifted_s=None)


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
        if reason is None and len(live(draft, deployment, variant)) <= wanted:
            reason = _capacity_overdue(draft, deployment, variant, settings)
        if reason is not None:
            return reason
        fleet = live(draft, deployment, variant)
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
    for instance in live(draft, deployment, variant):
        cause = _breakage(draft, instance, settings)
        if cause is None:
            continue
        text, verdict = cause
        was_good = (
            instance.running_s is not None
            and draft.now_s - instance.running_s >= settings.retry_max_s
        )
        attempts = 1 if was_good else instance.attempts + 1
        if not is_serving and verdict is not None:
            return verdict
        if attempts > MAX_ATTEMPTS and (
            not is_serving or draft.endpoint.status is EndpointStatus.UPDATING
        ):
            return verdict or failure_reasons.instance_failure(variant.name, text)
        if len(live(draft, deployment, variant)) <= wanted:
            delay = settings.backoff.after(attempts)
            draft.want_instance(
                deployment,
                variant,
                reason=f"replaces {instance.instance_id}: {text}",
                cause_s=draft.now_s,
                attempts=attempts,
                not_before_s=draft.now_s if was_good else draft.now_s + delay,
            )
        if instance.instance_id in draft.view.lost:
            draft.stop(instance, text)
        else:
            draft.drain(instance, text)
    return None


def _breakage(
    draft: Draft, instance: Instance, settings: EndpointSettings
) -> tuple[str, str | None] | None:
    """What is wrong with the instance, and the FailureReason if it is the deployment's fault."""
    view = draft.view
    if instance.instance_id in view.lost:
        return view.lost[instance.instance_id], None
    for copy in draft.copies_on(instance):
        if copy.state == CopyState.FAILED:
            text = f"copy {copy.copy_id} failed: {copy.message}"
            fatal = not failure_reasons.is_worth_retrying(copy)
            return text, failure_reasons.copy_failure(copy) if fatal else None
        since_s = view.unhealthy_since_s.get(copy.copy_id)
        if since_s is not None and draft.now_s - since_s >= settings.unhealthy_s:
            return (
                f"copy {copy.copy_id} has not answered /ping for {settings.unhealthy_s:.0f} s",
                failure_reasons.copy_failure(
                    replace(copy, failure=copy.failure or "health_timeout")
                ),
            )
    return None


def _capacity_overdue(
    draft: Draft, deployment: Deployment, variant: Variant, settings: EndpointSettings
) -> str | None:
    limit_s = variant.spec.provision_timeout_s or settings.provision_timeout_s
    for instance in live(draft, deployment, variant):
        if (
            instance.state is InstanceState.WANTED
            and instance.failure
            and draft.now_s - instance.created_s >= limit_s
        ):
            return failure_reasons.capacity_failure(
                variant.name, f"No capacity came free in {limit_s:.0f} s: {instance.failure}"
            )
    return None


def live(draft: Draft, deployment: Deployment, variant: Variant) -> list[Instance]:
    found = [
        i
        for i in draft.instances.values()
        if i.deployment_id == deployment.deployment_id
        and i.variant == variant.name
        and i.state in LIVE_STATES
    ]
    return sorted(found, key=lambda i: (i.created_s, i.instance_id))


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
