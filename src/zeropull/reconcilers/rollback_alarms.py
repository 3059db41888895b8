"""The alarms that roll a deployment back, read from their stored documents."""

from __future__ import annotations

from collections.abc import Iterable

from zeropull.resources.alarms import MetricAlarm, alarm_key
from zeropull.resources.components import InferenceComponent
from zeropull.resources.endpoints import Endpoint
from zeropull.statestore import Store


def rollback_alarms(
    store: Store, endpoint: Endpoint, components: Iterable[InferenceComponent] = ()
) -> frozenset[str]:
    """Names of the alarms in ALARM that an update of the endpoint, or of one of its components, is
    to be rolled back for."""
    under_way = (endpoint.pending, *(component.pending for component in components))
    names = {name for each in under_way if each is not None for name in each.policy.rollback_alarms}
    found = (store.get(MetricAlarm, alarm_key(endpoint.account, name)) for name in names)
    return frozenset(
        stored.document.name for stored in found if stored is not None and stored.document.is_alarm
    )
