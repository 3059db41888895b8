"""Decides about the copies of one inference component: pure.

Life of a copy: placed -> healthy -> in rotation -> draining -> stopping -> gone. A copy that must
move (its instance is to go, its version was replaced or rolled back) leaves only when others serve
in its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from zeropull.controlapi.messages import CopyState
from zeropull.placement.capacity import Slot
from zeropull.placement.placing import CopyRequest, choose_victims
from zeropull.reconcilers import failure_reasons
from zeropull.reconcilers.components.slots import request_for
from zeropull.reconcilers.endpoint_view import LIVE_STATES
from zeropull.reconcilers.endpoints.fleet import MAX_ATTEMPTS
from zeropull.reconcilers.plan import Draft, Effect
from zeropull.resources.components import ComponentStatus, ComponentVersion, InferenceComponent
from zeropull.resources.instances import CopyIntent, CopyRecord, InstanceState
from zeropull.resources.settings import EndpointSettings


@dataclass(frozen=True, slots=True)
class WantedCopy:
    """A copy to be placed, and why."""

    request: CopyRequest
    version: ComponentVersion
    reason: str
    cause_s: float


def plan_copies(
    draft: Draft, name: str, slots: dict[str, Slot], settings: EndpointSettings
) -> list[WantedCopy]:
    """Status, versions and copies of one component; returns the copies that need a place."""
    component = draft.components[name]
    match component.status:
        case ComponentStatus.DELETING:
            for copy in _copies(draft, name):
                drain_copy(draft, copy, "the inference component is deleted")
            return []
        case ComponentStatus.FAILED:
            for copy in _copies(draft, name):
                stop_copy(draft, copy, "the inference component has failed")
            return []
    _note_failed_copies(draft, name, settings)
    if draft.components[name].status is ComponentStatus.FAILED:
        return plan_copies(draft, name, slots, settings)
    for version in (draft.components[name].current, draft.components[name].pending):
        if version is not None and version.image is None:
            _want_image(draft, name, version)
    component = draft.components[name]
    if component.status is ComponentStatus.FAILED:
        return plan_copies(draft, name, slots, settings)
    if component.pending is not None:
        _shift(draft, name)
    wanted = _fill(draft, name, slots, settings)
    _let_leave(draft, name)
    _finish(draft, name, settings)
    return wanted


def plan_leaving_copies(draft: Draft, settings: EndpointSettings) -> None:
    """Draining copies stop, stopped ones go. Copies on instances that go leave with these."""
    view = draft.view
    for copy in list(draft.copies.values()):
        if copy.component is None or copy.intent is CopyIntent.RUN:
            continue
        instance = draft.instances.get(copy.instance_id)
        if instance is None or instance.state not in LIVE_STATES:
            continue
        if instance.state is InstanceState.WANTED:
            _drop(draft, copy)
        elif copy.intent is CopyIntent.STOP:
            if copy.copy_id in view.stopped:
                _drop(draft, copy)
        elif copy.routed_s is None and copy.healthy_s is None:
            stop_copy(draft, copy, "it has never served")
        else:
            component = draft.components.get(copy.component)
            deleting = component is None or component.status is ComponentStatus.DELETING
            limit_s = settings.delete_drain_s if deleting else settings.drain_s
            waited_s = draft.now_s - (copy.draining_s or draft.now_s)
            # The plan that began the drain ran before routes without it were published.
            told = waited_s > 0 and (view.gateways.acknowledged or not view.gateways.up)
            idle = not view.gateways.up or not view.gateways.in_flight.get(copy.copy_id, 0)
            if told and idle:
                stop_copy(draft, copy, "drained: no request is left")
            elif waited_s >= limit_s:
                stop_copy(draft, copy, f"drained for {limit_s:.0f} s, which is the limit")


def is_serving(draft: Draft, copy: CopyRecord) -> bool:
    """Healthy and in rotation; a gateway that is down cannot hold a component up."""
    instance = draft.instances.get(copy.instance_id)
    return (
        copy.intent is CopyIntent.RUN
        and copy.state == CopyState.HEALTHY
        and instance is not None
        and instance.state is InstanceState.RUNNING
        and instance.instance_id not in draft.view.lost
        and (
            not draft.view.gateways.up
            or copy.routed_s is not None
            or copy.copy_id in draft.view.gateways.routed_s
        )
    )


def drain_copy(draft: Draft, copy: CopyRecord, reason: str) -> None:
    """No new requests for it; what runs may finish. Idempotent."""
    if copy.intent is CopyIntent.RUN:
        draft.copies[copy.copy_id] = replace(
            copy, intent=CopyIntent.DRAIN, draining_s=copy.draining_s or draft.now_s
        )
        draft.decide("copy draining", copy.copy_id, reason)


def stop_copy(draft: Draft, copy: CopyRecord, reason: str) -> None:
    """Its container is to end now, requests or not. Idempotent."""
    if copy.intent is not CopyIntent.STOP:
        draft.copies[copy.copy_id] = replace(
            copy, intent=CopyIntent.STOP, draining_s=copy.draining_s or draft.now_s
        )
        draft.decide("copy stopping", copy.copy_id, reason)


def fail_version(draft: Draft, name: str, reason: str) -> None:
    """The version that is being rolled out cannot succeed: the component fails, or goes back."""
    component = draft.components[name]
    if component.pending is not None:
        draft.decide("update rolled back", name, reason)
        draft.components[name] = replace(
            component,
            pending=None,
            retired=(*component.retired, component.pending),
            failure_reason=reason,
            waiting="",
            waiting_since_s=None,
        )
    elif component.status is ComponentStatus.CREATING:
        _set_status(draft, name, ComponentStatus.FAILED, reason)
    elif component.status is ComponentStatus.UPDATING:
        _set_status(draft, name, ComponentStatus.IN_SERVICE, reason)
    elif component.failure_reason != reason:
        draft.components[name] = replace(component, failure_reason=reason)


# ------------------------------------------------------------------------------------- versions


def _want_image(draft: Draft, name: str, version: ComponentVersion) -> None:
    failure = draft.view.resolve_failures.get(version.version_id)
    if failure is not None:
        fail_version(draft, name, failure)
    else:
        draft.act(Effect.RESOLVE_COMPONENT, version.version_id, "a new version")


def _note_failed_copies(draft: Draft, name: str, settings: EndpointSettings) -> None:
    for copy in _copies(draft, name):
        component = draft.components[name]
        if copy.state != CopyState.FAILED or copy.intent is not CopyIntent.RUN:
            continue
        reason = failure_reasons.copy_failure(copy)
        stop_copy(draft, copy, f"failed: {copy.message}")
        version = component.version(copy.deployment_id)
        if version is None or version in component.retired:
            continue
        attempts = version.attempts + 1
        delay_s = settings.backoff.after(attempts)
        _set_version(
            draft,
            name,
            replace(version, attempts=attempts, next_attempt_s=draft.now_s + delay_s),
        )
        is_new = version is component.pending or component.status is ComponentStatus.CREATING
        hopeless = attempts > MAX_ATTEMPTS or not failure_reasons.is_worth_retrying(copy)
        if hopeless and (is_new or component.pending is None):
            fail_version(draft, name, reason)


def _shift(draft: Draft, name: str) -> None:
    """One step of a rolling update: a batch of the new version serves, then as many old ones go."""
    component = draft.components[name]
    pending = component.pending
    assert pending is not None
    rolling = pending.policy.rolling
    alarms = sorted(draft.view.alarms & frozenset(pending.policy.rollback_alarms))
    if alarms:
        fail_version(draft, name, f"The alarm {alarms[0]} went into ALARM: rolled back.")
        return
    limit_s = rolling.max_execution_s if rolling else None
    if limit_s is not None and draft.now_s - pending.started_s > limit_s:
        fail_version(draft, name, f"The update took longer than {limit_s:.0f} s: rolled back.")
        return
    if pending.image is None:
        return
    goal = _new_goal(component, pending)
    ready = sum(is_serving(draft, c) for c in _keepers(draft, name, pending))
    if ready < goal:
        if pending.batch_ready_s is not None:
            _set_version(draft, name, replace(pending, batch_ready_s=None))
        return
    since_s = pending.batch_ready_s if pending.batch_ready_s is not None else draft.now_s
    if rolling is not None and draft.now_s - since_s < rolling.wait_interval_s:
        _set_version(draft, name, replace(pending, batch_ready_s=since_s))
        return
    moved = replace(pending, shifted_copies=goal, batch_ready_s=None)
    _set_version(draft, name, moved)
    if goal >= component.desired_copies:
        draft.decide("new version serves", name, f"{goal} of {component.desired_copies} copies")
        draft.components[name] = replace(
            draft.components[name],
            current=replace(moved, shifted_copies=0),
            pending=None,
            retired=(*component.retired, component.current),
        )


def _new_goal(component: InferenceComponent, pending: ComponentVersion) -> int:
    """How many copies of the new version there are to be now."""
    rolling = pending.policy.rolling
    desired = component.desired_copies
    batch = 1
    if rolling is not None:
        if rolling.batch.unit == "CAPACITY_PERCENT":
            batch = max(1, math.floor(desired * rolling.batch.value / 100))
        else:
            batch = rolling.batch.value
    return min(desired, pending.shifted_copies + batch)


# --------------------------------------------------------------------------------------- copies


def _fill(
    draft: Draft, name: str, slots: dict[str, Slot], settings: EndpointSettings
) -> list[WantedCopy]:
    component = draft.components[name]
    goals = [(component.current, component.desired_copies)]
    if component.pending is not None:
        shifted = component.pending.shifted_copies
        goals = [(component.current, max(0, component.desired_copies - shifted))]
        if component.pending.image is not None:
            goals.append((component.pending, _new_goal(component, component.pending)))
    wanted: list[WantedCopy] = []
    for version, goal in goals:
        keepers = _keepers(draft, name, version)
        due = version.next_attempt_s is None or draft.now_s >= version.next_attempt_s
        if version.image is not None and due:
            for _ in range(goal - len(keepers)):
                reason = _why(component, version, len(keepers), goal)
                repairs = component.status is ComponentStatus.IN_SERVICE
                cause_s = draft.now_s if repairs else component.cause_s or component.modified_s
                wanted.append(WantedCopy(request_for(name, version), version, reason, cause_s))
        surplus = len(keepers) - goal
        if surplus > 0:
            for copy in _victims(draft, name, keepers, surplus, slots):
                drain_copy(draft, copy, f"{goal} copies are wanted, there were {len(keepers)}")
    return wanted


def _let_leave(draft: Draft, name: str) -> None:
    """Copies that must move go as soon as enough others serve."""
    component = draft.components[name]
    stay = {
        copy.copy_id
        for version in (component.current, component.pending)
        if version is not None
        for copy in _keepers(draft, name, version)
    }
    leavers = [
        c
        for c in _copies(draft, name)
        if c.copy_id not in stay and c.intent is CopyIntent.RUN and _is_on_live(draft, c)
    ]
    serving = sum(is_serving(draft, c) for c in _copies(draft, name))
    for copy in sorted(leavers, key=lambda c: is_serving(draft, c)):
        if not is_serving(draft, copy):
            drain_copy(draft, copy, "it is replaced")
        elif serving > component.desired_copies:
            serving -= 1
            drain_copy(draft, copy, "others serve in its place")


def _finish(draft: Draft, name: str, settings: EndpointSettings) -> None:
    """Counts, and the status that follows from them."""
    component = draft.components[name]
    copies = _copies(draft, name)
    serving = sum(is_serving(draft, c) for c in copies)
    used = {c.deployment_id for c in copies}
    component = replace(
        component,
        current_copies=serving,
        retired=tuple(v for v in component.retired if v.version_id in used),
    )
    keepers = _keepers(draft, name, component.current)
    ready = sum(is_serving(draft, c) for c in keepers)
    if ready == len(keepers) and component.current.attempts and keepers:
        current = replace(component.current, attempts=0, next_attempt_s=None)
        component = replace(component, current=current)
    draft.components[name] = component
    restarting = next((c for c in copies if c.state == CopyState.BACKOFF), None)
    if restarting is not None:
        text = f"copy {restarting.copy_id} is started again ({restarting.restarts} restarts): "
        note_waiting(draft, name, text + restarting.message)
    elif component.waiting.startswith("copy "):
        note_waiting(draft, name, "")
    stay = {c.copy_id for c in keepers}
    leavers = [c for c in copies if c.intent is CopyIntent.RUN and c.copy_id not in stay]
    if component.pending is not None or ready != component.desired_copies or leavers:
        return
    if component.status is ComponentStatus.UPDATING and any(
        c.intent is CopyIntent.DRAIN and not draft.view.gateways.acknowledged for c in copies
    ):
        return
    if component.status in (ComponentStatus.CREATING, ComponentStatus.UPDATING):
        note_waiting(draft, name, "")
        reason = draft.components[name].failure_reason
        _set_status(draft, name, ComponentStatus.IN_SERVICE, reason)


def note_waiting(draft: Draft, name: str, text: str) -> None:
    """Why the component is not as it should be, for people; "" once it is."""
    component = draft.components[name]
    if text != component.waiting:
        since_s = component.waiting_since_s if text and component.waiting else draft.now_s
        draft.components[name] = replace(
            component, waiting=text, waiting_since_s=since_s if text else None
        )
        if text:
            draft.decide("inference component waits", name, text)


def _copies(draft: Draft, name: str) -> list[CopyRecord]:
    return draft.copies.of_component(name)


def _keepers(draft: Draft, name: str, version: ComponentVersion) -> list[CopyRecord]:
    """Copies of this version that are to stay where they are."""
    return [
        c
        for c in _copies(draft, name)
        if c.deployment_id == version.version_id
        and c.intent is CopyIntent.RUN
        and _is_on_live(draft, c)
        and not draft.instances[c.instance_id].leaving
    ]


def _is_on_live(draft: Draft, copy: CopyRecord) -> bool:
    instance = draft.instances.get(copy.instance_id)
    return instance is not None and instance.state in LIVE_STATES


def _victims(
    draft: Draft, name: str, keepers: Sequence[CopyRecord], count: int, slots: dict[str, Slot]
) -> list[CopyRecord]:
    """Copies that do not serve yet, then those whose going frees most."""
    idle = {c.copy_id: c for c in keepers if not is_serving(draft, c)}
    idle = dict(list(idle.items())[:count])
    in_flight = draft.view.gateways.in_flight
    others = [c for c in keepers if c.copy_id not in idle]
    chosen = choose_victims(
        name,
        count - len(idle),
        [(c.copy_id, c.instance_id, in_flight.get(c.copy_id, 0)) for c in others],
        slots,
    )
    going = frozenset(chosen)
    return [*idle.values(), *(c for c in others if c.copy_id in going)]


def _drop(draft: Draft, copy: CopyRecord) -> None:
    del draft.copies[copy.copy_id]
    draft.gone_copies.add(copy.copy_id)
    draft.decide("copy gone", copy.copy_id, "nothing is left of it on its node")


def _set_version(draft: Draft, name: str, version: ComponentVersion) -> None:
    component = draft.components[name]
    if component.current.version_id == version.version_id:
        draft.components[name] = replace(component, current=version)
    elif component.pending is not None and component.pending.version_id == version.version_id:
        draft.components[name] = replace(component, pending=version)


def _set_status(draft: Draft, name: str, status: ComponentStatus, reason: str) -> None:
    component = draft.components[name]
    text = f"{component.status} -> {status}" + (f": {reason}" if reason else "")
    draft.decide("inference component status changed", name, text)
    draft.components[name] = replace(
        component, status=status, failure_reason=reason, modified_s=draft.now_s
    )


def _why(component: InferenceComponent, version: ComponentVersion, found: int, goal: int) -> str:
    if component.status is ComponentStatus.CREATING:
        return f"inference component {component.name} is created with {goal} copies"
    if version is component.pending:
        return f"an update of inference component {component.name} needs {goal} copies"
    text = f"inference component {component.name} is to have {goal} copies, there were {found}"
    is_scaling = component.status is ComponentStatus.UPDATING
    return f"{text}: {component.cause}" if component.cause and is_scaling else text
