"""TagResource, UntagResource, ListTagsForResource of metric alarms."""

from __future__ import annotations

from zeropull.api.operations import Call, Members, Operation, Output
from zeropull.api.tagging import as_list, merged_tags, set_tags, tags_of
from zeropull.awsprotocol.arns import parse_arn
from zeropull.awsprotocol.faults import ApiFault
from zeropull.errors import InvalidInput
from zeropull.resources.alarms import MetricAlarm, alarm_key
from zeropull.statestore import Store


class AlarmTagOperations:
    def __init__(self, store: Store) -> None:
        self._store = store

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation("TagResource", self.tag),
            Operation("UntagResource", self.untag),
            Operation("ListTagsForResource", self.list_tags),
        )

    def tag(self, call: Call, members: Members) -> Output:
        with self._store.transaction():
            arn = self._existing(call, members["ResourceARN"])
            set_tags(self._store, arn, merged_tags(tags_of(self._store, arn), members["Tags"]))
        return {}

    def untag(self, call: Call, members: Members) -> Output:
        with self._store.transaction():
            arn = self._existing(call, members["ResourceARN"])
            gone = set(members["TagKeys"])
            tags = tags_of(self._store, arn)
            set_tags(self._store, arn, {k: v for k, v in tags.items() if k not in gone})
        return {}

    def list_tags(self, call: Call, members: Members) -> Output:
        return {"Tags": as_list(tags_of(self._store, self._existing(call, members["ResourceARN"])))}

    def _existing(self, call: Call, text: str) -> str:
        """`text`, which must be the ARN of an alarm of the caller."""
        try:
            kind, _, name = parse_arn(text).resource.partition(":")
        except InvalidInput as error:
            raise ApiFault("InvalidParameterValueException", error.reason) from error
        stored = self._store.get(MetricAlarm, alarm_key(call.account, name))
        if kind != "alarm" or stored is None or stored.document.arn != text:
            raise ApiFault(
                "ResourceNotFoundException",
                f"There is no resource with the ARN {text}: only metric alarms have tags here.",
                404,
                {"ResourceType": "AWS::CloudWatch::Alarm", "ResourceId": text},
            )
        return text
