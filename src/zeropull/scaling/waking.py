"""Starts the first copy of a component that was scaled to zero, for a request that waits (`fast`).

The gateway holds the request and says so at once. One flight: a component that is to have a copy
already is left alone, whatever waits for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from zeropull.controlapi.messages import GatewayReport
from zeropull.errors import Conflict
from zeropull.resources.components import (
    ComponentStatus,
    InferenceComponent,
    component_key,
    with_copies,
)
from zeropull.resources.scaling import COMPONENT_DIMENSION, ScalableTarget
from zeropull.scaling.documents import ScalingDocuments
from zeropull.scaling.targets import TargetStates
from zeropull.statestore import Store
from zeropull.telemetry import get_logger

log = get_logger(__name__)


class WaitedFor(NamedTuple):
    """A component for which requests wait. `account` "": a gateway of 0.1.0 does not say it."""

    account: str
    endpoint: str
    component: str


def waiting_requests(reports: Iterable[GatewayReport]) -> Counter[WaitedFor]:
    """Requests that wait now for a component, over all gateways."""
    found: Counter[WaitedFor] = Counter()
    for report in reports:
        for each in report.waiting:
            if each.component is not None:
                found[WaitedFor(each.account, each.endpoint, each.component)] += each.count
        for name, count in report.queued.items():
            parts = name.split("/")  # endpoint/variant/component
            if len(parts) == 3 and count:
                found[WaitedFor("", parts[0], parts[2])] += count
    return found


class ComponentWaker:
    """Raises the desired copies of components in the fast mode that have none."""

    def __init__(self, store: Store, documents: ScalingDocuments, states: TargetStates) -> None:
        self._store = store
        self._documents = documents
        self._states = states

    def wake(self, waiting: Counter[WaitedFor], now_s: float) -> None:
        """Wake every component for which requests wait."""
        if not waiting:
            return
        for target in self._documents.targets.all():
            if target.dimension != COMPONENT_DIMENSION:
                continue
            try:
                self._wake_one(target, waiting, now_s)
            except Exception as error:  # requests for other components wait too
                log.error("not woken", target=target.resource_id, error=str(error), exc_info=error)

    def _wake_one(self, target: ScalableTarget, waiting: Counter[WaitedFor], now_s: float) -> None:
        component = self._documents.components.get(component_key(target.account, target.component))
        if component is None or component.desired_copies:
            return
        if component.status is ComponentStatus.DELETING:
            return
        count = self._count_of(component, waiting)
        if count and target.holds(self._documents.mode(target)):
            self._raise_copies(target, component, count, now_s)

    def _count_of(self, component: InferenceComponent, waiting: Counter[WaitedFor]) -> int:
        count = waiting[WaitedFor(component.account, component.endpoint, component.name)]
        without_account = waiting[WaitedFor("", component.endpoint, component.name)]
        if without_account and self._is_only_of_its_name(component):
            count += without_account
        return count

    def _is_only_of_its_name(self, component: InferenceComponent) -> bool:
        """No other account has one: a request without an account can wait for this one only."""
        names = [(each.endpoint, each.name) for each in self._documents.components.all()]
        return names.count((component.endpoint, component.name)) == 1

    def _raise_copies(
        self, target: ScalableTarget, component: InferenceComponent, count: int, now_s: float
    ) -> None:
        copies = max(1, target.minimum)
        reason = f"{count} request(s) wait, and there is no copy"
        try:
            changed = with_copies(
                component, copies, now_s, reason=reason, cause_s=now_s, while_scaling=True
            )
        except Conflict:
            return  # it is being created or updated: the next look finds it again
        with self._store.transaction():
            self._store.put(changed)
            activities = self._states.of(target, now_s).activities
            activities.begin(target, copies, f"the fast mode: {reason}", now_s)
        log.info("inference component woken", component=component.name, reason=reason)
