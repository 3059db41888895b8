"""What counts as a failure of an instance or a copy, and when it ends what it belongs to. Pure.

A failure that says something about image, model or container ends a creation or an update at once.
Any other one is tried again, with backoff, up to `MAX_ATTEMPTS` times in a row. What serves already
is replaced for as long as it takes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from zeropull.controlapi.messages import CopyState
from zeropull.reconcilers import failure_reasons
from zeropull.reconcilers.plan import Draft
from zeropull.resources.endpoints import EndpointStatus, Variant
from zeropull.resources.instances import CopyRecord, Instance, InstanceState
from zeropull.resources.settings import EndpointSettings

MAX_ATTEMPTS = 3  # failures in a row until a creation, an update or a scale-out is given up


@dataclass(frozen=True, slots=True)
class Breakage:
    """What is wrong. `verdict`: the FailureReason, None where another try may well succeed."""

    text: str
    verdict: str | None = None


def fail_endpoint(draft: Draft, reason: str) -> None:
    draft.set_endpoint(replace(draft.endpoint, status=EndpointStatus.FAILED, failure_reason=reason))
    stop_all(draft)


def stop_all(draft: Draft) -> None:
    for instance in list(draft.instances.values()):
        draft.stop(instance, "the endpoint has failed")


def copy_breakage(copy: CopyRecord) -> Breakage | None:
    """The node has given the copy up."""
    if copy.state != CopyState.FAILED:
        return None
    fatal = not failure_reasons.is_worth_retrying(copy)
    verdict = failure_reasons.copy_failure(copy) if fatal else None
    return Breakage(f"copy {copy.copy_id} failed: {copy.message}", verdict)


def instance_breakage(
    draft: Draft, instance: Instance, settings: EndpointSettings
) -> Breakage | None:
    """Its node is gone, or one of its own copies has failed or is ill for too long."""
    view = draft.view
    if instance.instance_id in view.lost:
        return Breakage(view.lost[instance.instance_id])
    for copy in draft.copies_on(instance):
        if copy.component is not None:
            continue
        broken = copy_breakage(copy)
        if broken is not None:
            return broken
        since_s = view.unhealthy_since_s.get(copy.copy_id)
        if since_s is not None and draft.now_s - since_s >= settings.unhealthy_s:
            ill = replace(copy, failure=copy.failure or "health_timeout")
            return Breakage(
                f"copy {copy.copy_id} has not answered /ping for {settings.unhealthy_s:.0f} s",
                failure_reasons.copy_failure(ill),
            )
    return None


def capacity_overdue(
    draft: Draft, variant: Variant, instances: Iterable[Instance], settings: EndpointSettings
) -> str | None:
    """The FailureReason once one of the instances could not be had for too long."""
    limit_s = provision_limit_s(variant, settings)
    for instance in instances:
        if (
            instance.state is InstanceState.WANTED
            and instance.failure
            and draft.now_s - instance.created_s >= limit_s
        ):
            return failure_reasons.capacity_failure(
                variant.name, f"No capacity came free in {limit_s:.0f} s: {instance.failure}"
            )
    return None


def provision_limit_s(variant: Variant, settings: EndpointSettings) -> float:
    """How long instances, room on them and digests may be waited for."""
    return variant.spec.provision_timeout_s or settings.provision_timeout_s


def is_due(next_attempt_s: float | None, now_s: float, settings: EndpointSettings) -> bool:
    """Whether it is time for the next attempt. No pause is longer than `retry_max_s`: a time beyond
    it was written before the clock was set back."""
    return next_attempt_s is None or not 0 < next_attempt_s - now_s <= settings.retry_max_s
