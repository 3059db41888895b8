"""Scaling policies with unmodified boto3: target tracking, step scaling, and their alarms."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError, ParamValidationError

from tests.fixtures.aws_api import ACCOUNT, REGION, refusal
from tests.integration.api.scaling_clients import (
    CONCURRENCY,
    RESOURCE,
    SERVICE,
    UNKNOWN_TARGET,
    Clients,
    by_math,
    stepping,
    tracking,
)


def test_target_tracking_comes_with_its_two_alarms(clients: Clients) -> None:
    clients.register()
    answer = clients.put_policy(ScaleInCooldown=60)
    assert answer["PolicyARN"].startswith(f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:scalingPolicy:")
    assert answer["PolicyARN"].endswith(
        ":resource/sagemaker/endpoint/ep/variant/v1:policyName/track"
    )
    names = [alarm["AlarmName"] for alarm in answer["Alarms"]]
    prefix = "TargetTracking-endpoint/ep/variant/v1-Alarm"
    assert [name[: len(prefix) + 4] for name in names] == [f"{prefix}High", f"{prefix}Low-"]
    alarms = {
        alarm["AlarmName"]: alarm
        for alarm in clients.cloudwatch.describe_alarms(AlarmNames=names)["MetricAlarms"]
    }
    high, low = (alarms[name] for name in names)
    assert high["AlarmActions"] == [answer["PolicyARN"]]
    assert (high["MetricName"], high["Statistic"]) == ("ConcurrentRequestsPerModel", "Maximum")
    assert (high["Period"], high["EvaluationPeriods"], high["Threshold"]) == (10, 3, 5.0)
    assert (low["Period"], low["EvaluationPeriods"], low["Threshold"]) == (10, 90, 4.5)
    assert (high["ComparisonOperator"], low["ComparisonOperator"]) == (
        "GreaterThanThreshold", "LessThanThreshold",
    )  # fmt: skip
    described = clients.policies()[0]
    assert described["TargetTrackingScalingPolicyConfiguration"] == tracking(ScaleInCooldown=60)
    assert described["PolicyType"] == "TargetTrackingScaling"
    assert described["Alarms"] == answer["Alarms"]


def test_a_policy_put_again_keeps_its_arn_and_alarms(clients: Clients) -> None:
    clients.register()
    first = clients.put_policy()
    second = clients.put_policy(target=8.0)
    assert (second["PolicyARN"], second["Alarms"]) == (first["PolicyARN"], first["Alarms"])
    alarms = clients.cloudwatch.describe_alarms()["MetricAlarms"]
    assert sorted(alarm["Threshold"] for alarm in alarms) == [7.2, 8.0]


def test_the_standard_metric_is_watched_by_the_minute(clients: Clients) -> None:
    clients.register()
    clients.put_policy(kind="SageMakerVariantInvocationsPerInstance", target=100)
    alarms = clients.cloudwatch.describe_alarms()["MetricAlarms"]
    shape = {(a["Period"], a["EvaluationPeriods"], a["Statistic"], a["Threshold"]) for a in alarms}
    assert shape == {(60, 3, "Sum", 100.0), (60, 15, "Sum", 90.0)}


def test_metric_math_can_be_tracked(clients: Clients) -> None:
    clients.register()
    metric = {"Namespace": "own", "MetricName": "queue"}
    custom = {
        "Metrics": [
            {"Id": "q", "MetricStat": {"Metric": metric, "Stat": "Sum"}, "ReturnData": False},
            {"Id": "per_one", "Expression": "q / 2", "ReturnData": True},
        ]
    }
    config = {"TargetValue": 3.0, "CustomizedMetricSpecification": custom}
    clients.autoscaling.put_scaling_policy(
        **RESOURCE,
        PolicyName="math",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration=config,
    )
    assert clients.policies()[0]["TargetTrackingScalingPolicyConfiguration"] == config
    alarm = clients.cloudwatch.describe_alarms()["MetricAlarms"][0]
    assert alarm["Metrics"][1]["Expression"] == "q / 2"


def test_a_step_policy_has_the_alarms_that_name_it(clients: Clients) -> None:
    clients.register()
    config = stepping((0.0, None, 1), Cooldown=60, MetricAggregationType="Maximum")
    answer = clients.autoscaling.put_scaling_policy(
        **RESOURCE,
        PolicyName="up",
        PolicyType="StepScaling",
        StepScalingPolicyConfiguration=config,
    )
    assert answer["Alarms"] == []
    clients.cloudwatch.put_metric_alarm(
        AlarmName="mine", Namespace="own", MetricName="queue", Statistic="Sum", Period=60,
        EvaluationPeriods=1, Threshold=1, ComparisonOperator="GreaterThanOrEqualToThreshold",
        AlarmActions=[answer["PolicyARN"]],
    )  # fmt: skip
    described = clients.policies()[0]
    assert described["StepScalingPolicyConfiguration"] == config
    assert [alarm["AlarmName"] for alarm in described["Alarms"]] == ["mine"]
    clients.autoscaling.delete_scaling_policy(**RESOURCE, PolicyName="up")
    assert clients.alarm_names() == ["mine"]  # it is the user's


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"TargetTrackingScalingPolicyConfiguration": tracking(kind="ALBRequestCountPerTarget")},
            "is not one of SageMaker's",
        ),
        (
            {
                "TargetTrackingScalingPolicyConfiguration": tracking(
                    kind="SageMakerInferenceComponentInvocationsPerCopy"
                )
            },
            "cannot scale sagemaker:variant:DesiredInstanceCount",
        ),
        (
            {
                "TargetTrackingScalingPolicyConfiguration": {
                    "TargetValue": 1.0,
                    "PredefinedMetricSpecification": {
                        "PredefinedMetricType": CONCURRENCY,
                        "ResourceLabel": "app/x",
                    },
                }
            },
            "ResourceLabel cannot be used",
        ),
        (
            {"TargetTrackingScalingPolicyConfiguration": {"TargetValue": 1.0}},
            "Exactly one of PredefinedMetricSpecification",
        ),
        ({"TargetTrackingScalingPolicyConfiguration": tracking(target=0)}, "must be above 0"),
        (
            {"TargetTrackingScalingPolicyConfiguration": tracking(ScaleInCooldown=-1)},
            "ScaleInCooldown -1 is below 0",
        ),
        (
            {"TargetTrackingScalingPolicyConfiguration": by_math({"Expression": "q / "})},
            "Error in expression 'e'",
        ),
        (
            {"TargetTrackingScalingPolicyConfiguration": by_math({"Expression": "other / 2"})},
            "unknown id 'other'",
        ),
        (
            {
                "TargetTrackingScalingPolicyConfiguration": by_math(
                    {"Expression": "q / 2", "ReturnData": False}
                )
            },
            "Exactly one element of the metrics list should return data",
        ),
        (
            {
                "TargetTrackingScalingPolicyConfiguration": {
                    "TargetValue": 1.0,
                    "CustomizedMetricSpecification": {"Metrics": [{"Id": "A", "Expression": "1"}]},
                }
            },
            "not matching the expected pattern",
        ),
        (
            {"TargetTrackingScalingPolicyConfiguration": by_math({"Label": "neither"})},
            "mutually exclusive",
        ),
        ({}, "needs TargetTrackingScalingPolicyConfiguration"),
        ({"PolicyType": "Predictive"}, "failed to satisfy constraint"),
        (
            {
                "PolicyType": "StepScaling",
                "StepScalingPolicyConfiguration": stepping((0.0, 5.0, 1), (6.0, None, 2)),
            },
            "leave a gap between 5.0 and 6.0",
        ),
        (
            {
                "PolicyType": "StepScaling",
                "StepScalingPolicyConfiguration": stepping((0.0, None, 1))
                | {"AdjustmentType": "Doubling"},
            },
            "adjustmentType",
        ),
    ],
)
def test_policies_that_cannot_work_are_refused(
    clients: Clients, arguments: dict[str, Any], text: str
) -> None:
    clients.register()
    everything = {"PolicyName": "p", "PolicyType": "TargetTrackingScaling"} | arguments
    code, message, status = refusal(
        clients.autoscaling.put_scaling_policy, **RESOURCE, **everything
    )
    assert (code, status) == ("ValidationException", 400)
    assert text in message
    assert clients.policies() == []
    assert clients.alarm_names() == []


def test_a_metric_is_tracked_by_one_policy_only(clients: Clients) -> None:
    clients.register()
    clients.put_policy()
    with pytest.raises(ClientError, match="'track' tracks it already"):
        clients.put_policy("other")
    clients.put_policy("per-minute", kind="SageMakerVariantInvocationsPerInstance", target=100)
    assert len(clients.policies()) == 2


def test_policies_come_ten_at_a_time(clients: Clients) -> None:
    clients.register()
    for number in range(12):
        clients.autoscaling.put_scaling_policy(
            **RESOURCE,
            PolicyName=f"p{number:02}",
            PolicyType="StepScaling",
            StepScalingPolicyConfiguration=stepping((0.0, None, 1)),
        )
    pages = list(clients.autoscaling.get_paginator("describe_scaling_policies").paginate(**SERVICE))
    assert [len(page["ScalingPolicies"]) for page in pages] == [10, 2]
    assert [p["PolicyName"] for p in clients.policies(PolicyNames=["p03", "p99"])] == ["p03"]
    with pytest.raises(ClientError, match="ResourceId"):
        clients.policies(ScalableDimension=RESOURCE["ScalableDimension"])


def test_policies_need_a_target_and_deleting_one_removes_its_alarms(clients: Clients) -> None:
    put = clients.put_policy
    assert refusal(put) == ("ObjectNotFoundException", UNKNOWN_TARGET, 400)
    clients.register()
    clients.put_policy()
    assert len(clients.alarm_names()) == 2
    clients.autoscaling.delete_scaling_policy(**RESOURCE, PolicyName="track")
    assert clients.alarm_names() == []
    code, message, _ = refusal(
        clients.autoscaling.delete_scaling_policy, **RESOURCE, PolicyName="track"
    )
    assert code == "ObjectNotFoundException"
    assert message.startswith("No scaling policy found for service namespace: sagemaker")


def test_predictive_policies_are_refused_by_name(clients: Clients) -> None:
    clients.register()
    with pytest.raises((ClientError, ParamValidationError), match="redictive"):
        clients.autoscaling.put_scaling_policy(
            **RESOURCE,
            PolicyName="p",
            PolicyType="PredictiveScaling",
            PredictiveScalingPolicyConfiguration={"MetricSpecifications": []},
        )
