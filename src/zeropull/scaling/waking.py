"""Starts the first copy of a component that was scaled to zero, for a request that waits (`fast`).

The gateway holds the request and says so at once. One flight: a component that is to have a copy
already is left alone, whatever waits for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from zeropull.controlapi.messages import GatewayReport
from zeropull.errors import Conflict
from zeropull.resources.components import ComponentStatus, InferenceComponent, with_copies
from zeropull.resources.scaling import COMPONENT_DIMENSION, ScalableTarget, target_key
from zeropull.scaling.activities import ActivityLog
from zeropull.statestore import Store
from zeropull.telemetry import get_logger

log = get_logger(__name__)


def held_requests(reports: Iterable[GatewayReport]) -> dict[tuple[str, str], int]:
    """Requests that wait now, by (endpoint, component), over all gateways."""
    found: dict[tuple[str, str], int] = {}
    for report in reports:
        for name, count in report.queued.items():
            parts = name.split("/")  # endpoint/variant/component
            if len(parts) == 3 and count:
                key = (parts[0], parts[2])
                found[key] = found.get(key, 0) + count
    return found


def wake_components(
    store: Store,
    held: Mapping[str, frozenset[str]],
    waiting: Mapping[tuple[str, str], int],
    now_s: float,
) -> None:
    """Raise the desired copies of components without any for which requests wait. `held`: names of
    components in the fast mode, by account."""
    if not waiting:
        return
    for stored in store.select(InferenceComponent, desired_copies=0):
        component = stored.document
        count = waiting.get((component.endpoint, component.name), 0)
        is_held = component.name in held.get(component.account, frozenset())
        if count and is_held and component.status is not ComponentStatus.DELETING:
            _wake(store, component, count, now_s)


def _wake(store: Store, component: InferenceComponent, count: int, now_s: float) -> None:
    resource_id = f"inference-component/{component.name}"
    target = store.get(
        ScalableTarget, target_key(component.account, resource_id, COMPONENT_DIMENSION)
    )
    copies = max(1, target.document.minimum if target else 1)
    reason = f"{count} request(s) wait, and there is no copy"
    try:
        changed = with_copies(
            component, copies, now_s, reason=reason, cause_s=now_s, while_scaling=True
        )
    except Conflict:
        return
    with store.transaction():
        store.put(changed)
        if target is not None:
            activities = ActivityLog(store, target.document)
            activities.begin(target.document, copies, f"the fast mode: {reason}", now_s)
    log.info("inference component woken", component=component.name, reason=reason)
