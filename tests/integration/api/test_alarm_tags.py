"""Tags of metric alarms with unmodified boto3."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.fixtures.aws_api import ACCOUNT
from tests.integration.api.scaling_clients import Clients


def alarm(cloudwatch: Any, name: str, **more: Any) -> str:
    cloudwatch.put_metric_alarm(
        AlarmName=name,
        Namespace="test",
        MetricName="m",
        Statistic="Sum",
        Period=60,
        EvaluationPeriods=1,
        Threshold=1.0,
        ComparisonOperator="GreaterThanThreshold",
        **more,
    )
    (found,) = cloudwatch.describe_alarms(AlarmNames=[name])["MetricAlarms"]
    return str(found["AlarmArn"])


def test_alarms_have_tags(clients: Clients) -> None:
    cloudwatch = clients.cloudwatch
    arn = alarm(cloudwatch, "tagged: yes", Tags=[{"Key": "team", "Value": "a"}])

    def tags() -> dict[str, str]:
        return {
            t["Key"]: t["Value"] for t in cloudwatch.list_tags_for_resource(ResourceARN=arn)["Tags"]
        }

    assert tags() == {"team": "a"}
    cloudwatch.tag_resource(
        ResourceARN=arn, Tags=[{"Key": "team", "Value": "b"}, {"Key": "x", "Value": ""}]
    )
    assert tags() == {"team": "b", "x": ""}
    cloudwatch.untag_resource(ResourceARN=arn, TagKeys=["x", "unknown"])
    alarm(cloudwatch, "tagged: yes", Tags=[{"Key": "ignored", "Value": "at an update"}])
    assert tags() == {"team": "b"}
    cloudwatch.delete_alarms(AlarmNames=["tagged: yes"])
    with pytest.raises(ClientError) as raised:
        tags()
    assert raised.value.response["Error"]["Code"] == "ResourceNotFoundException"
    alarm(cloudwatch, "tagged: yes")
    assert tags() == {}


def test_what_is_no_alarm_has_no_tags(clients: Clients) -> None:
    cloudwatch = clients.cloudwatch
    arn = alarm(cloudwatch, "one")
    for wrong, code in [
        (arn.replace(ACCOUNT, "1" * 12), "ResourceNotFoundException"),
        (arn + "x", "ResourceNotFoundException"),
        (arn.replace(":alarm:", ":dashboard/"), "ResourceNotFoundException"),
        ("no ARN", "InvalidParameterValue"),
    ]:
        with pytest.raises(ClientError) as raised:
            cloudwatch.list_tags_for_resource(ResourceARN=wrong)
        assert raised.value.response["Error"]["Code"] == code
    with pytest.raises(ClientError, match="at most 50 tags"):
        cloudwatch.tag_resource(
            ResourceARN=arn, Tags=[{"Key": str(n), "Value": ""} for n in range(51)]
        )
