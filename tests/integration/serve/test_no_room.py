"""A fleet that is full, and an update that an alarm takes back: what the user of each sees."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fixtures.registry import Registry
from tests.integration.serve.served import Served, running_serve, wait_until


@pytest.fixture
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Room for two instances; nobody waits for a third longer than 4 s."""
    folder = tmp_path_factory.mktemp("zp")
    settings = {"fleet": "max_instances = 2", "endpoints": "provision_timeout_s = 4"}
    with running_serve(folder, **settings) as served:
        yield served


def ask_for_two(served: Served, name: str) -> dict[str, str]:
    resource = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{name}/variant/main",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
    served.client("application-autoscaling").register_scalable_target(
        **resource, MinCapacity=2, MaxCapacity=3
    )
    return resource


def newest_activity(served: Served, resource: dict[str, str]) -> dict[str, Any]:
    found = served.client("application-autoscaling").describe_scaling_activities(**resource)
    activities = found["ScalingActivities"]
    return dict(activities[0]) if activities else {"StatusCode": "none yet"}


def test_a_full_fleet_is_named_and_waited_for_and_given_up(
    narrow: Served, registry: Registry
) -> None:
    image = f"{registry.address}/server:1"
    narrow.create("gives-up", image)
    narrow.create("waits", image, VariantInstanceProvisionTimeoutInSeconds=600)
    narrow.wait_in_service("gives-up")
    narrow.wait_in_service("waits")
    full = "2 of at most 2 instances (fleet.max_instances)"

    resource = ask_for_two(narrow, "gives-up")
    failed = wait_until(
        "the scale-out is given up",
        lambda: (a := newest_activity(narrow, resource))["StatusCode"] == "Failed" and a,
    )
    assert failed["Description"] == "Setting desired instance count to 2."
    assert failed["Cause"] == "minimum capacity was set to 2"
    assert full in failed["StatusMessage"]
    described = narrow.sagemaker.describe_endpoint(EndpointName="gives-up")
    assert described["EndpointStatus"] == "InService"
    assert full in described["FailureReason"]
    assert narrow.invoke("gives-up") == b"hello"
    explained = wait_until(
        "a pause before the next attempt",
        lambda: "next in" in (text := narrow.cli("explain", "gives-up")) and text,
    )
    assert "InsufficientCapacity" in explained

    resource = ask_for_two(narrow, "waits")
    lacking = wait_until(
        "the lack is shown while it is waited for",
        lambda: full in (a := newest_activity(narrow, resource)).get("Details", "") and a,
    )
    assert lacking["StatusCode"] == "InProgress"
    assert narrow.status("waits") == "Updating"
    assert narrow.invoke("waits") == b"hello"
    narrow.delete("gives-up")
    done = wait_until(
        "room is used",
        lambda: (a := newest_activity(narrow, resource))["StatusCode"] == "Successful" and a,
    )
    assert done["ActivityId"] == lacking["ActivityId"]
    variant = narrow.sagemaker.describe_endpoint(EndpointName="waits")["ProductionVariants"][0]
    assert variant["CurrentInstanceCount"] == 2


def test_an_alarm_rolls_an_update_back(served: Served, registry: Registry) -> None:
    image = f"{registry.address}/server:1"
    served.create("shop", image, Environment={"EDITION": "first"})
    served.wait_in_service("shop")
    _configure(served, "second", image)
    cloudwatch = served.client("cloudwatch")
    cloudwatch.put_metric_alarm(
        AlarmName="complaints", Namespace="own", MetricName="complaints", Statistic="Sum",
        Period=10, EvaluationPeriods=1, Threshold=3.0, ComparisonOperator="GreaterThanThreshold",
    )  # fmt: skip
    served.sagemaker.update_endpoint(
        EndpointName="shop",
        EndpointConfigName="second",
        DeploymentConfig={
            "BlueGreenUpdatePolicy": {
                "TrafficRoutingConfiguration": {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 600}
            },
            "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "complaints"}]},
        },
    )
    wait_until("the new edition answers", lambda: _edition(served) == "second")
    deadline = time.monotonic() + 60
    while served.status("shop") == "Updating" and time.monotonic() < deadline:
        cloudwatch.put_metric_data(
            Namespace="own",
            MetricData=[{"MetricName": "complaints", "Value": 9.0, "StorageResolution": 1}],
        )
        assert _edition(served) in ("first", "second")  # no request fails meanwhile
        threading.Event().wait(0.5)
    described = served.sagemaker.describe_endpoint(EndpointName="shop")
    assert described["EndpointStatus"] == "InService"
    assert described["EndpointConfigName"] == "shop"
    assert "alarm complaints is in ALARM" in described["FailureReason"]
    assert _edition(served) == "first"
    history = cloudwatch.describe_alarm_history(
        AlarmName="complaints", HistoryItemType="StateUpdate"
    )["AlarmHistoryItems"]
    assert "to ALARM" in history[0]["HistorySummary"]


def _configure(served: Served, name: str, image: str) -> None:
    """Another model and an endpoint config for it."""
    served.sagemaker.create_model(
        ModelName=name,
        PrimaryContainer={"Image": image, "Environment": {"EDITION": name}},
        ExecutionRoleArn="arn:aws:iam::000000000000:role/test",
    )
    served.sagemaker.create_endpoint_config(
        EndpointConfigName=name,
        ProductionVariants=[
            {
                "VariantName": "main",
                "ModelName": name,
                "InstanceType": "ml.g5.xlarge",
                "InitialInstanceCount": 1,
            }
        ],
    )


def _edition(served: Served) -> str:
    """Which model answers."""
    answer = served.runtime.invoke_endpoint(
        EndpointName="shop", Body=b"", CustomAttributes="show=environment"
    )
    return str(json.loads(answer["Body"].read())["EDITION"])
