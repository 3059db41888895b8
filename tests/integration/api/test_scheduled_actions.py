"""Scheduled actions with unmodified boto3, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.fixtures.aws_api import refusal
from tests.integration.api.scaling_clients import RESOURCE, SERVICE, Clients


def test_scheduled_actions_are_put_described_and_deleted(clients: Clients) -> None:
    with pytest.raises(ClientError, match="No scalable target found"):
        clients.put_action()
    clients.register()
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=9)
    clients.put_action(Timezone="Europe/Berlin", EndTime=ends)
    clients.put_action(ScalableTargetAction={"MinCapacity": 2, "MaxCapacity": 8})
    found = clients.autoscaling.describe_scheduled_actions(**SERVICE)["ScheduledActions"]
    assert len(found) == 1
    assert found[0]["Schedule"] == "cron(0 22 * * ? *)"
    assert (found[0]["Timezone"], found[0]["EndTime"]) == ("Europe/Berlin", ends)
    assert found[0]["ScalableTargetAction"] == {"MinCapacity": 2, "MaxCapacity": 8}
    assert ":scheduledActionName/night" in found[0]["ScheduledActionARN"]
    clients.autoscaling.delete_scheduled_action(**RESOURCE, ScheduledActionName="night")
    code, message, _ = refusal(
        clients.autoscaling.delete_scheduled_action, **RESOURCE, ScheduledActionName="night"
    )
    assert (code, "night" in message) == ("ObjectNotFoundException", True)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"Schedule": "every(5 minutes)"}, "is no schedule"),
        ({"Timezone": "Mars/Olympus"}, "no IANA time zone"),
        ({"ScalableTargetAction": {}}, "needs MinCapacity"),
        ({"ScalableTargetAction": {"MinCapacity": 3, "MaxCapacity": 2}}, "above MaxCapacity"),
        ({"ScalableTargetAction": {"MinCapacity": 0}}, "MinCapacity 0 is below 1"),
        ({"ScalableTargetAction": {"MaxCapacity": 0}}, "MaxCapacity 0 is below 1"),
        (
            {
                "StartTime": datetime(2027, 1, 2, tzinfo=UTC),
                "EndTime": datetime(2027, 1, 1, tzinfo=UTC),
            },
            "StartTime of a scheduled action must be before its EndTime",
        ),
        ({"name": "a/b"}, "regular expression"),
        ({"name": " a"}, "regular expression"),
    ],
)
def test_schedules_that_never_run_are_refused(
    clients: Clients, change: dict[str, Any], text: str
) -> None:
    clients.register()
    with pytest.raises(ClientError, match=text) as raised:
        clients.put_action(**change)
    assert raised.value.response["Error"]["Code"] == "ValidationException"
