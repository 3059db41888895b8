"""The history of alarms: a bounded list of events beside each."""

from __future__ import annotations

import json

from zeropull.resources.alarms import HISTORY_ITEMS, AlarmEvent, AlarmHistory, MetricAlarm
from zeropull.statestore.store import Store


def record_transition(store: Store, before: MetricAlarm, after: MetricAlarm) -> None:
    """Into the history, when the state has changed. Inside a transaction of the caller."""
    if before.state == after.state:
        return
    data = {
        "version": "1.0",
        "oldState": {"stateValue": before.state, "stateReason": before.state_reason},
        "newState": {"stateValue": after.state, "stateReason": after.state_reason},
    }
    summary = f"Alarm updated from {before.state} to {after.state}"
    event = AlarmEvent(after.state_updated_s, "StateUpdate", summary, json.dumps(data))
    add_event(store, after, event)


def add_event(store: Store, alarm: MetricAlarm, event: AlarmEvent) -> None:
    """Keep the newest events of an alarm; they outlive it. Inside a transaction of the caller."""
    stored = store.get(AlarmHistory, alarm.key)
    events = stored.document.events if stored is not None else ()
    store.put(AlarmHistory(alarm.account, alarm.name, (*events, event)[-HISTORY_ITEMS:]))
