"""How copies and instances leave: draining -> stopping -> gone. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from zeropull.reconcilers.endpoint_view import LIVE_STATES
from zeropull.reconcilers.plan import Draft, Effect
from zeropull.resources.components import ComponentStatus
from zeropull.resources.endpoints import EndpointStatus
from zeropull.resources.instances import CopyIntent, CopyRecord, Instance, InstanceState
from zeropull.resources.settings import EndpointSettings

STOP_LIMIT_S = 40.0  # SIGTERM, 30 s, SIGKILL, and what the node needs to say so


def delete_all(draft: Draft) -> None:
    """The endpoint is deleted: what serves may finish its requests, for a short time."""
    for instance in list(draft.instances.values()):
        if instance.state is InstanceState.WANTED:
            draft.stop(instance, "the endpoint is deleted")
        else:
            draft.drain(instance, "the endpoint is deleted")


def let_go(draft: Draft, instance: Instance, reason: str) -> None:
    """Drain it; an instance whose node is gone has nothing to drain."""
    if instance.instance_id in draft.view.lost:
        draft.stop(instance, reason)
    else:
        draft.drain(instance, reason)


def plan_leaving(draft: Draft, settings: EndpointSettings) -> None:
    """Draining copies and instances stop when no request is left, stopped ones go."""
    for copy in list(draft.copies.values()):
        if copy.component is not None and copy.intent is not CopyIntent.RUN:
            _copy_leaves(draft, copy, settings)
    for instance in list(draft.instances.values()):
        if instance.state is InstanceState.DRAINING:
            _drain_ends(draft, instance, settings)
        elif instance.state is InstanceState.TERMINATING:
            _stop_ends(draft, instance)


def _copy_leaves(draft: Draft, copy: CopyRecord, settings: EndpointSettings) -> None:
    """A component's copy on an instance that stays. On one that goes, copies leave with it."""
    instance = draft.instances.get(copy.instance_id)
    if instance is None or instance.state not in LIVE_STATES:
        return
    if instance.state is InstanceState.WANTED:
        draft.drop_copy(copy, "it has never been on its node")
    elif copy.intent is CopyIntent.STOP:
        if copy.copy_id in draft.view.stopped:
            draft.drop_copy(copy, "nothing is left of it on its node")
    elif copy.routed_s is None and copy.healthy_s is None:
        draft.stop_copy(copy, "it has never served")
    else:
        component = draft.components.get(copy.component or "")
        is_deleted = component is None or component.status is ComponentStatus.DELETING
        reason = _drained(draft, [copy], copy.draining_s, _limit_s(is_deleted, settings))
        if reason:
            draft.stop_copy(copy, reason)


def _drain_ends(draft: Draft, instance: Instance, settings: EndpointSettings) -> None:
    if instance.instance_id in draft.view.lost:
        draft.stop(instance, "its node is gone")
        return
    is_deleted = draft.view.endpoint.status is EndpointStatus.DELETING
    copies = draft.copies_on(instance)
    reason = _drained(draft, copies, instance.draining_s, _limit_s(is_deleted, settings))
    if reason:
        draft.stop(instance, reason)


def _stop_ends(draft: Draft, instance: Instance) -> None:
    began_s = instance.terminating_s if instance.terminating_s is not None else draft.now_s
    if (
        all(c.copy_id in draft.view.stopped for c in draft.copies_on(instance))
        or instance.launched_s is None
        or instance.instance_id in draft.view.lost
        or draft.now_s - began_s >= STOP_LIMIT_S
    ):
        draft.act(Effect.TERMINATE, instance.instance_id, "its containers have stopped")


def _drained(
    draft: Draft, copies: Iterable[CopyRecord], since_s: float | None, limit_s: float
) -> str:
    """Why what drains may stop now; "" while it may not."""
    gateways = draft.view.gateways
    waited_s = draft.now_s - (since_s if since_s is not None else draft.now_s)
    # The plan that began the drain ran before routes without it were published.
    told = waited_s != 0 and (gateways.acknowledged or not gateways.up)
    if told and not (gateways.up and any(gateways.in_flight.get(c.copy_id) for c in copies)):
        return "drained: no request is left"
    if waited_s >= limit_s:
        return f"drained for {limit_s:.0f} s, which is the limit"
    return ""


def _limit_s(is_deleted: bool, settings: EndpointSettings) -> float:
    return settings.delete_drain_s if is_deleted else settings.drain_s
