"""Decides about the copies of one inference component: pure.

Life of a copy: placed -> healthy -> in rotation -> draining -> stopping -> gone. A copy that must
move (its instance is to go, its version was replaced or rolled back) leaves only when others serve
in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from zeropull.controlapi.messages import CopyState
from zeropull.placement.capacity import Slot
from zeropull.placement.placing import CopyRequest, choose_victims
from zeropull.reconcilers.components.slots import request_for
from zeropull.reconcilers.components.versions import (
    new_goal,
    note_failed_copies,
    note_waiting,
    set_status,
    shift,
    want_images,
)
from zeropull.reconcilers.endpoint_view import LIVE_STATES
from zeropull.reconcilers.failing import is_due
from zeropull.reconcilers.plan import Draft
from zeropull.resources.components import ComponentStatus, ComponentVersion, InferenceComponent
from zeropull.resources.instances import CopyIntent, CopyRecord
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
    if component.status is ComponentStatus.DELETING:
        for copy in _copies(draft, name):
            draft.drain_copy(copy, "the inference component is deleted")
        return []
    if component.status is not ComponentStatus.FAILED:
        note_failed_copies(draft, name, settings)
        want_images(draft, name)
    component = draft.components[name]
    if component.status is ComponentStatus.FAILED:
        for copy in _copies(draft, name):
            draft.stop_copy(copy, "the inference component has failed")
        return []
    if component.pending is not None:
        keepers = _keepers(draft, name, component.pending)
        shift(draft, name, sum(_is_serving(draft, c) for c in keepers))
    wanted = _fill(draft, name, slots, settings)
    _let_leave(draft, name)
    _finish(draft, name)
    return wanted


def _fill(
    draft: Draft, name: str, slots: dict[str, Slot], settings: EndpointSettings
) -> list[WantedCopy]:
    component = draft.components[name]
    goals = [(component.current, component.desired_copies)]
    if component.pending is not None:
        shifted = component.pending.shifted_copies
        goals = [(component.current, max(0, component.desired_copies - shifted))]
        if component.pending.image is not None:
            goals.append((component.pending, new_goal(component, component.pending)))
    wanted: list[WantedCopy] = []
    for version, goal in goals:
        keepers = _keepers(draft, name, version)
        due = is_due(version.next_attempt_s, draft.now_s, settings)
        if version.image is not None and due:
            for _ in range(goal - len(keepers)):
                reason = _why(component, version, len(keepers), goal)
                repairs = component.status is ComponentStatus.IN_SERVICE
                cause_s = draft.now_s if repairs else component.cause_s or component.modified_s
                wanted.append(WantedCopy(request_for(name, version), version, reason, cause_s))
        surplus = len(keepers) - goal
        if surplus > 0:
            for copy in _victims(draft, name, keepers, surplus, slots):
                draft.drain_copy(copy, f"{goal} copies are wanted, there were {len(keepers)}")
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
    serving = sum(_is_serving(draft, c) for c in _copies(draft, name))
    for copy in sorted(leavers, key=lambda c: _is_serving(draft, c)):
        if not _is_serving(draft, copy):
            draft.drain_copy(copy, "it is replaced")
        elif serving > component.desired_copies:
            serving -= 1
            draft.drain_copy(copy, "others serve in its place")


def _finish(draft: Draft, name: str) -> None:
    """Counts, and the status that follows from them."""
    component = draft.components[name]
    copies = _copies(draft, name)
    serving = sum(_is_serving(draft, c) for c in copies)
    used = {c.deployment_id for c in copies}
    component = replace(
        component,
        current_copies=serving,
        retired=tuple(v for v in component.retired if v.version_id in used),
    )
    keepers = _keepers(draft, name, component.current)
    ready = sum(_is_serving(draft, c) for c in keepers)
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
        set_status(draft, name, ComponentStatus.IN_SERVICE, reason)


def _is_serving(draft: Draft, copy: CopyRecord) -> bool:
    return draft.view.is_serving(copy, draft.instances.get(copy.instance_id))


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
    idle = {c.copy_id: c for c in keepers if not _is_serving(draft, c)}
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


def _why(component: InferenceComponent, version: ComponentVersion, found: int, goal: int) -> str:
    if component.status is ComponentStatus.CREATING:
        return f"inference component {component.name} is created with {goal} copies"
    if version is component.pending:
        return f"an update of inference component {component.name} needs {goal} copies"
    text = f"inference component {component.name} is to have {goal} copies, there were {found}"
    is_scaling = component.status is ComponentStatus.UPDATING
    return f"{text}: {component.cause}" if component.cause and is_scaling else text
