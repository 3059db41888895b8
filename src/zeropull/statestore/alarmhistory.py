"""The history of alarms: a bounded list of events beside each."""

from __future__ import annotations

import json

from zeropull.resources.alarms import HISTORY_ITEMS, AlarmEvent, AlarmHistory, MetricAlarm
from zeropull.statestore.store import Store

ACTIONS_OF = {
    "OK": "OKActions",
    "ALARM": "AlarmActions",
    "INSUFFICIENT_DATA": "InsufficientDataActions",
}


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
    if not after.actions_enabled:
        return
    for action in after.request.get(ACTIONS_OF[after.state]) or []:
        done = action.startswith("arn:aws:autoscaling:")
        summary = f"Successfully executed action {action}"
        if not done:
            summary = f"Failed to execute action {action}: only scaling policies are actions here"
        add_event(store, after, AlarmEvent(after.state_updated_s, "Action", summary))


def record_configuration(store: Store, alarm: MetricAlarm, what: str, now_s: float) -> None:
    """That it was created, updated or deleted. Inside a transaction of the caller."""
    summary = f'Alarm "{alarm.name}" {what}'
    add_event(store, alarm, AlarmEvent(now_s, "ConfigurationUpdate", summary))


def add_event(store: Store, alarm: MetricAlarm, event: AlarmEvent) -> None:
    """Keep the newest events of an alarm; they outlive it. Inside a transaction of the caller."""
    stored = store.get(AlarmHistory, alarm.key)
    events = stored.document.events if stored is not None else ()
    store.put(AlarmHistory(alarm.account, alarm.name, (*events, event)[-HISTORY_ITEMS:]))
