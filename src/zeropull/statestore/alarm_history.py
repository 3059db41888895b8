"""The history of alarms: a bounded list of events beside each.

Their data are JSON in the shape that DescribeAlarmHistory of AWS gives it.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

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
    data = {"version": "1.0", "oldState": _state_of(before), "newState": _state_of(after)}
    summary = f"Alarm updated from {before.state} to {after.state}"
    event = AlarmEvent(after.state_updated_s, "StateUpdate", summary, json.dumps(data))
    add_event(store, after, event)
    if not after.actions_enabled:
        return
    for action in after.request.get(ACTIONS_OF[after.state]) or []:
        add_event(store, after, _action_event(after, action))


def record_configuration(store: Store, alarm: MetricAlarm, what: str, now_s: float) -> None:
    """That it was created, updated or deleted. Inside a transaction of the caller."""
    summary = f'Alarm "{alarm.name}" {what}'
    kind = {"created": "Create", "updated": "Update", "deleted": "Delete"}[what]
    data = {"version": "1.0", "type": kind, f"{what}Alarm": _configuration(alarm)}
    add_event(store, alarm, AlarmEvent(now_s, "ConfigurationUpdate", summary, json.dumps(data)))


def add_event(store: Store, alarm: MetricAlarm, event: AlarmEvent) -> None:
    """Keep the newest events of an alarm; they outlive it. Inside a transaction of the caller."""
    stored = store.get(AlarmHistory, alarm.key)
    events = stored.document.events if stored is not None else ()
    store.put(AlarmHistory(alarm.account, alarm.name, (*events, event)[-HISTORY_ITEMS:]))


def _action_event(alarm: MetricAlarm, action: str) -> AlarmEvent:
    done = action.startswith("arn:aws:autoscaling:")
    error = "" if done else "only scaling policies are actions here"
    data = {
        "version": "1.0",
        "actionState": "Succeeded" if done else "Failed",
        "notificationResource": action,
        "stateUpdateTimestamp": int(alarm.state_updated_s * 1000),
        "error": error or None,
    }
    summary = f"Successfully executed action {action}"
    if error:
        summary = f"Failed to execute action {action}: {error}"
    return AlarmEvent(alarm.state_updated_s, "Action", summary, json.dumps(data))


def _state_of(alarm: MetricAlarm) -> dict[str, Any]:
    state: dict[str, Any] = {"stateValue": alarm.state, "stateReason": alarm.state_reason}
    try:
        data = json.loads(alarm.state_reason_data or "null")
    except ValueError:
        data = None  # set by a user before only JSON was taken
    if isinstance(data, dict):
        # recentDatapoints says the same in short; the alarm itself has them of its newest state.
        data.pop("evaluatedDatapoints", None)
        state["stateReasonData"] = data
    return state


def _configuration(alarm: MetricAlarm) -> dict[str, Any]:
    return {
        "alarmName": alarm.name,
        "alarmArn": alarm.arn,
        "alarmConfigurationUpdatedTimestamp": _stamp(alarm.configured_s),
        "stateValue": alarm.state,
        "stateUpdatedTimestamp": _stamp(alarm.state_updated_s),
        "actionsEnabled": alarm.actions_enabled,
        **_lower(alarm.request),
    }


def _lower(value: Any) -> Any:
    """With member names as JSON of AWS's own has them: the first letter small, and okactions."""
    if isinstance(value, dict):
        return {
            "okactions" if name == "OKActions" else name[:1].lower() + name[1:]: _lower(each)
            for name, each in value.items()
        }
    return [_lower(each) for each in value] if isinstance(value, list) else value


def _stamp(at_s: float) -> str:
    moment = datetime.fromtimestamp(at_s, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}+0000"
