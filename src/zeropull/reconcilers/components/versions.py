"""The versions of a component: resolved, rolled out in batches, rolled back. Pure."""

from __future__ import annotations

from dataclasses import replace

from zeropull.reconcilers import failure_reasons
from zeropull.reconcilers.failing import MAX_ATTEMPTS, copy_breakage
from zeropull.reconcilers.plan import Draft, Effect
from zeropull.reconcilers.updating import next_batch, rollback_reason
from zeropull.resources.components import ComponentStatus, ComponentVersion, InferenceComponent
from zeropull.resources.instances import CopyIntent
from zeropull.resources.settings import EndpointSettings


def want_images(draft: Draft, name: str) -> None:
    """Ask for the digest of each version that lacks it; what has none fails."""
    for version in (draft.components[name].current, draft.components[name].pending):
        if version is None or version.image is not None:
            continue
        failure = draft.view.resolve_failures.get(version.version_id)
        if failure is not None:
            fail_version(draft, name, failure)
        else:
            draft.act(Effect.RESOLVE, version.version_id, "a new version")


def note_failed_copies(draft: Draft, name: str, settings: EndpointSettings) -> None:
    """Copies that their nodes have given up stop; their version is tried again, or fails."""
    for copy in draft.copies.of_component(name):
        component = draft.components[name]
        broken = copy_breakage(copy)
        if broken is None or copy.intent is not CopyIntent.RUN:
            continue
        draft.stop_copy(copy, f"failed: {copy.message}")
        version = component.version(copy.deployment_id)
        if version is None or version in component.retired:
            continue
        attempts = version.attempts + 1
        next_s = draft.now_s + settings.backoff.after(attempts)
        set_version(draft, name, replace(version, attempts=attempts, next_attempt_s=next_s))
        is_new = version is component.pending or component.status is ComponentStatus.CREATING
        is_hopeless = attempts > MAX_ATTEMPTS or broken.verdict is not None
        if is_hopeless and (is_new or component.pending is None):
            fail_version(draft, name, failure_reasons.copy_failure(copy))


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
        set_status(draft, name, ComponentStatus.FAILED, reason)
    elif component.status is ComponentStatus.UPDATING:
        set_status(draft, name, ComponentStatus.IN_SERVICE, reason)
    elif component.failure_reason != reason:
        draft.components[name] = replace(component, failure_reason=reason)


def shift(draft: Draft, name: str, ready: int) -> None:
    """One step of a rolling update: a batch of the new version serves, then as many old ones go.

    `ready`: copies of the new version that serve.
    """
    component = draft.components[name]
    pending = component.pending
    assert pending is not None
    back = rollback_reason(draft, pending.policy, pending.started_s, is_shifting=True)
    if back is not None:
        fail_version(draft, name, back)
        return
    if pending.image is None:
        return
    rolling = pending.policy.rolling
    goal = new_goal(component, pending)
    if ready < goal:
        if pending.batch_ready_s is not None:
            set_version(draft, name, replace(pending, batch_ready_s=None))
        return
    since_s = pending.batch_ready_s if pending.batch_ready_s is not None else draft.now_s
    if rolling is not None and draft.now_s - since_s < rolling.wait_interval_s:
        set_version(draft, name, replace(pending, batch_ready_s=since_s))
        return
    moved = replace(pending, shifted_copies=goal, batch_ready_s=None)
    set_version(draft, name, moved)
    if goal >= component.desired_copies:
        draft.decide("new version serves", name, f"{goal} of {component.desired_copies} copies")
        draft.components[name] = replace(
            draft.components[name],
            current=replace(moved, shifted_copies=0),
            pending=None,
            retired=(*component.retired, component.current),
        )


def new_goal(component: InferenceComponent, pending: ComponentVersion) -> int:
    """How many copies of the new version there are to be now."""
    rolling = pending.policy.rolling
    if rolling is None:
        return min(component.desired_copies, pending.shifted_copies + 1)
    return next_batch(rolling.batch, pending.shifted_copies, component.desired_copies)


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


def set_version(draft: Draft, name: str, version: ComponentVersion) -> None:
    component = draft.components[name]
    if component.current.version_id == version.version_id:
        draft.components[name] = replace(component, current=version)
    elif component.pending is not None and component.pending.version_id == version.version_id:
        draft.components[name] = replace(component, pending=version)


def set_status(draft: Draft, name: str, status: ComponentStatus, reason: str) -> None:
    component = draft.components[name]
    text = f"{component.status} -> {status}" + (f": {reason}" if reason else "")
    draft.decide("inference component status changed", name, text)
    draft.components[name] = replace(
        component, status=status, failure_reason=reason, modified_s=draft.now_s
    )
