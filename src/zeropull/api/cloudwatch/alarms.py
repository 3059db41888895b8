"""Metric alarms: put, describe, history, set, enable and disable, delete.

Source: Amazon CloudWatch API reference, version 2010-08-01. The reconcilers evaluate the alarms.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from zeropull.api.cloudwatch.alarm_checks import check_alarm
from zeropull.api.cloudwatch.faults import invalid_combination, invalid_value
from zeropull.api.listing import page
from zeropull.api.operations import Call, Members, Operation, Output
from zeropull.api.tagging import set_initial_tags
from zeropull.awsprotocol.arns import Arn, partition_of
from zeropull.awsprotocol.faults import ApiFault
from zeropull.awsprotocol.members import MemberRules
from zeropull.resources.alarms import AlarmHistory, MetricAlarm, alarm_key
from zeropull.resources.tags import ResourceTags
from zeropull.statestore import Store
from zeropull.statestore.alarm_history import ACTIONS_OF, record_configuration, record_transition

MAX_NAMES = 100
WRONG_PAGE = "InvalidNextToken"
_NOT_ECHOED = frozenset({"AlarmName", "Tags", "ActionsEnabled"})
_REFUSED = {
    name: "only metric alarms over a sliding window of datapoints are evaluated"
    for name in (
        "EvaluationWindow",
        "WarmUpConfiguration",
        "EvaluationCriteria",
        "EvaluationInterval",
    )
}
_DESCRIBE_RULES = MemberRules(
    refused={
        "ChildrenOfAlarmName": "there are no composite alarms",
        "ParentsOfAlarmName": "there are no composite alarms",
    }
)
_HISTORY_RULES = MemberRules(refused={"AlarmContributorId": "alarms have no contributors"})


class AlarmOperations:
    def __init__(self, store: Store) -> None:
        self._store = store

    def operations(self) -> tuple[Operation, ...]:
        rules = MemberRules(
            accepted={
                "ActionConfiguration": "actions are scaling policies only",
            },
            refused={
                **_REFUSED,
                "ThresholdMetricId": "thresholds are numbers: there is no anomaly detection",
            },
        )
        return (
            Operation("PutMetricAlarm", self.put, rules),
            Operation("DescribeAlarms", self.describe, _DESCRIBE_RULES),
            Operation("DescribeAlarmsForMetric", self.describe_for_metric),
            Operation("DescribeAlarmHistory", self.history, _HISTORY_RULES),
            Operation("SetAlarmState", self.set_state),
            Operation("EnableAlarmActions", self.enable),
            Operation("DisableAlarmActions", self.disable),
            Operation("DeleteAlarms", self.delete),
        )

    def put(self, call: Call, members: Members) -> Output:
        check_alarm(members, call.account)
        with self._store.transaction():
            is_new = (
                self._store.get(MetricAlarm, alarm_key(call.account, members["AlarmName"])) is None
            )
            alarm = put_alarm(self._store, call, members)
            if is_new:  # as on AWS, tags of an alarm that is there already stay as they are
                set_initial_tags(self._store, alarm.arn, members.get("Tags") or [])
        return None

    def describe(self, call: Call, members: Members) -> Output:
        types = members.get("AlarmTypes") or ["MetricAlarm"]
        names = members.get("AlarmNames")
        if len(names or []) > MAX_NAMES:
            raise invalid_value(f"At most {MAX_NAMES} alarms are described by name at once.")
        if names is not None and members.get("AlarmNamePrefix") is not None:
            raise invalid_combination(
                "AlarmNamePrefix and AlarmNames must not be specified together"
            )
        alarms = [
            alarm
            for alarm in self._alarms(call)
            if (names is None or alarm.name in names)
            and alarm.name.startswith(members.get("AlarmNamePrefix", ""))
            and members.get("StateValue") in (None, alarm.state)
            and _has_action(alarm, members.get("ActionPrefix"))
        ]
        if "MetricAlarm" not in types:
            alarms = []
        chosen, token = _paged(alarms, members)
        return {
            "MetricAlarms": [describe_alarm(alarm) for alarm in chosen],
            "CompositeAlarms": [],
            "NextToken": token,
        }

    def describe_for_metric(self, call: Call, members: Members) -> Output:
        wanted = ("MetricName", "Namespace", "Statistic", "ExtendedStatistic", "Period", "Unit")
        dimensions = _dimension_set(members)
        found = [
            alarm
            for alarm in self._alarms(call)
            if all(members.get(n) in (None, alarm.request.get(n)) for n in wanted)
            and _dimension_set(alarm.request) == dimensions
        ]
        return {"MetricAlarms": [describe_alarm(alarm) for alarm in found]}

    def history(self, call: Call, members: Members) -> Output:
        histories = [
            stored.document
            for stored in self._store.select(AlarmHistory, prefix=f"{call.account}/")
            if members.get("AlarmName") in (None, stored.document.name)
        ]
        items = [
            (event.at_s, number, history.name, event)
            for history in histories
            for number, event in enumerate(history.events)
            if members.get("HistoryItemType") in (None, event.kind_of)
            and members.get("StartDate", 0) <= event.at_s <= members.get("EndDate", float("inf"))
        ]
        chosen, token = page(
            items,
            members | {"MaxResults": members.get("MaxRecords", 100)},
            lambda item: (item[0], f"{item[2]} {item[1]:09d}"),
            descending=members.get("ScanBy", "TimestampDescending") != "TimestampAscending",
            default_size=100,
            token_fault=WRONG_PAGE,
        )
        return {
            "AlarmHistoryItems": [
                {
                    "AlarmName": name,
                    "AlarmType": "MetricAlarm",
                    "Timestamp": event.at_s,
                    "HistoryItemType": event.kind_of,
                    "HistorySummary": event.summary,
                    "HistoryData": event.data or None,
                }
                for _, _, name, event in chosen
            ],
            "NextToken": token,
        }

    def set_state(self, call: Call, members: Members) -> Output:
        data = members.get("StateReasonData", "")
        if data and not _is_json(data):
            raise ApiFault("InvalidFormatFault", "StateReasonData must be in the format of JSON.")
        with self._store.transaction():
            stored = self._store.get(MetricAlarm, alarm_key(call.account, members["AlarmName"]))
            if stored is None:
                raise ApiFault("ResourceNotFound", f"Unknown alarm {members['AlarmName']}.", 404)
            alarm = change_state(
                stored.document,
                members["StateValue"],
                members["StateReason"],
                data,
                call.now_s,
            )
            self._store.put(alarm)
            record_transition(self._store, stored.document, alarm)
        return None

    def enable(self, call: Call, members: Members) -> Output:
        return self._switch(call, members, enabled=True)

    def disable(self, call: Call, members: Members) -> Output:
        return self._switch(call, members, enabled=False)

    def delete(self, call: Call, members: Members) -> Output:
        """Unknown names are no error, as on AWS."""
        if len(members["AlarmNames"]) > MAX_NAMES:
            raise invalid_value(f"At most {MAX_NAMES} alarms are deleted at once.")
        with self._store.transaction():
            for name in members["AlarmNames"]:
                delete_alarm(self._store, call.account, name, call.now_s)
        return None

    def _switch(self, call: Call, members: Members, *, enabled: bool) -> Output:
        with self._store.transaction():
            for name in members["AlarmNames"]:
                stored = self._store.get(MetricAlarm, alarm_key(call.account, name))
                if stored is not None:
                    self._store.put(dataclasses.replace(stored.document, actions_enabled=enabled))
        return None

    def _alarms(self, call: Call) -> list[MetricAlarm]:
        stored = self._store.select(MetricAlarm, prefix=f"{call.account}/")
        return [each.document for each in stored]


def put_alarm(
    store: Store, call: Call, members: Mapping[str, Any], *, owner: str = ""
) -> MetricAlarm:
    """Create or replace; the state of an alarm that was there already stays. In a transaction."""
    name = members["AlarmName"]
    before = store.get(MetricAlarm, alarm_key(call.account, name))
    alarm = MetricAlarm(
        account=call.account,
        name=name,
        arn=alarm_arn(call, name),
        configured_s=call.now_s,
        state_updated_s=call.now_s,
        state_transitioned_s=call.now_s,
        request={key: value for key, value in members.items() if key not in _NOT_ECHOED},
        actions_enabled=members.get("ActionsEnabled", True),
        owner=owner,
    )
    if before is not None:
        old = before.document
        alarm = dataclasses.replace(
            alarm,
            state=old.state,
            state_reason=old.state_reason,
            state_reason_data=old.state_reason_data,
            state_updated_s=old.state_updated_s,
            state_transitioned_s=old.state_transitioned_s,
        )
    store.put(alarm)
    record_configuration(store, alarm, "updated" if before else "created", call.now_s)
    return alarm


def alarm_arn(call: Call, name: str) -> str:
    partition = partition_of(call.region)
    return str(Arn("cloudwatch", call.region, call.account, f"alarm:{name}", partition))


def delete_alarm(store: Store, account: str, name: str, now_s: float) -> None:
    """One that is not there is no error; its history outlives it. In a transaction."""
    stored = store.get(MetricAlarm, alarm_key(account, name))
    if stored is None:
        return
    store.delete(MetricAlarm, stored.document.key)
    store.delete(ResourceTags, stored.document.arn)
    record_configuration(store, stored.document, "deleted", now_s)


def change_state(
    alarm: MetricAlarm, state: str, reason: str, data: str, now_s: float
) -> MetricAlarm:
    """The alarm in `state`. A confirmation of the same state leaves the time of the transition."""
    return dataclasses.replace(
        alarm,
        state=state,
        state_reason=reason,
        state_reason_data=data,
        state_updated_s=now_s,
        state_transitioned_s=now_s if state != alarm.state else alarm.state_transitioned_s,
        set_s=now_s,
    )


def describe_alarm(alarm: MetricAlarm) -> dict[str, Any]:
    """An alarm as DescribeAlarms shows it."""
    return {
        "OKActions": [],
        "AlarmActions": [],
        "InsufficientDataActions": [],
        "Dimensions": [],
        **alarm.request,
        "AlarmName": alarm.name,
        "AlarmArn": alarm.arn,
        "AlarmConfigurationUpdatedTimestamp": alarm.configured_s,
        "ActionsEnabled": alarm.actions_enabled,
        "StateValue": alarm.state,
        "StateReason": alarm.state_reason,
        "StateReasonData": alarm.state_reason_data or None,
        "StateUpdatedTimestamp": alarm.state_updated_s,
        "StateTransitionedTimestamp": alarm.state_transitioned_s,
    }


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _has_action(alarm: MetricAlarm, prefix: str | None) -> bool:
    actions = [action for kind in ACTIONS_OF.values() for action in alarm.request.get(kind) or []]
    return prefix is None or any(action.startswith(prefix) for action in actions)


def _dimension_set(members: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(each["Name"], each["Value"]) for each in members.get("Dimensions") or []}


def _paged(alarms: Sequence[MetricAlarm], members: Members) -> tuple[list[MetricAlarm], str | None]:
    return page(
        alarms,
        members | {"MaxResults": members.get("MaxRecords", 50)},
        lambda alarm: (alarm.name, ""),
        descending=False,
        default_size=50,
        token_fault=WRONG_PAGE,
    )
