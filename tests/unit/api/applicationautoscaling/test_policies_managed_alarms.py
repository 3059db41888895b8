"""The managed alarms of a policy go with it, whatever takes it away, and leave their history."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.unit.scaling.scaling_world import ACCOUNT, RESOURCE, ScalingWorld
from zeropull.api.applicationautoscaling import let_go_of_component, let_go_of_endpoint
from zeropull.api.operations import Call
from zeropull.api.sagemaker import sagemaker_table
from zeropull.api.sagemaker.endpoints import EndpointHooks
from zeropull.resources.components import (
    ComponentSpec,
    ComponentStatus,
    ComponentVersion,
    InferenceComponent,
)
from zeropull.resources.models import ContainerSpec

COMPONENT = {
    "ServiceNamespace": "sagemaker",
    "ResourceId": "inference-component/ic",
    "ScalableDimension": "sagemaker:inference-component:DesiredCopyCount",
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[ScalingWorld]:
    made = ScalingWorld(tmp_path)
    yield made
    made.close()


def call_sagemaker(world: ScalingWorld, operation: str, **members: Any) -> None:
    table = sagemaker_table(
        world.store,
        instance_types=["ml.m5.large"],
        with_components=True,
        hooks=EndpointHooks(on_delete=partial(let_go_of_endpoint, world.store)),
        on_component_delete=partial(let_go_of_component, world.store),
    )
    found = table.operation(operation)
    assert found is not None
    found.handler(Call(ACCOUNT, "us-east-1", operation, "r", world.now_s), members)


def add_component(world: ScalingWorld) -> None:
    spec = ComponentSpec(ContainerSpec(image="repo/app:1"), memory_bytes=1 << 30)
    world.store.put(
        InferenceComponent(
            account=ACCOUNT, name="ic",
            arn=f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:inference-component/ic", uid="i" * 32,
            endpoint_uid=world.endpoint.uid, endpoint="demo", endpoint_arn=world.endpoint.arn,
            variant="main", status=ComponentStatus.IN_SERVICE, created_s=world.now_s,
            modified_s=world.now_s, desired_copies=1, current=ComponentVersion(spec, world.now_s),
        )
    )  # fmt: skip
    world.call("RegisterScalableTarget", **COMPONENT, MinCapacity=0, MaxCapacity=4)
    kind = "SageMakerInferenceComponentConcurrentRequestsPerCopyHighResolution"
    world.call(
        "PutScalingPolicy", **COMPONENT, PolicyName="copies", PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={
            "TargetValue": 2.0,
            "PredefinedMetricSpecification": {"PredefinedMetricType": kind},
        },
    )  # fmt: skip


def delete_policy(world: ScalingWorld) -> None:
    world.call("DeleteScalingPolicy", **RESOURCE, PolicyName="track")


def deregister(world: ScalingWorld) -> None:
    world.call("DeregisterScalableTarget", **RESOURCE)


def delete_endpoint(world: ScalingWorld) -> None:
    call_sagemaker(world, "DeleteEndpoint", EndpointName="demo")


def delete_alarms(world: ScalingWorld) -> None:
    names = [alarm["AlarmName"] for alarm in world.call("DescribeAlarms")["MetricAlarms"]]
    world.call("DeleteAlarms", AlarmNames=names)


def deletions(world: ScalingWorld) -> dict[str, dict[str, Any]]:
    """The newest event of each alarm by its name, which has to be the deletion."""
    newest: dict[str, dict[str, Any]] = {}
    for item in world.call("DescribeAlarmHistory", ScanBy="TimestampAscending")[
        "AlarmHistoryItems"
    ]:
        newest[item["AlarmName"]] = item
    for name, item in newest.items():
        assert item["HistorySummary"] == f'Alarm "{name}" deleted'
        assert item["HistoryItemType"] == "ConfigurationUpdate"
        assert item["Timestamp"] == world.now_s
        data = json.loads(item["HistoryData"])
        assert (data["type"], data["deletedAlarm"]["alarmName"]) == ("Delete", name)
    return newest


@pytest.mark.parametrize("delete", [delete_policy, deregister, delete_endpoint, delete_alarms])
def test_managed_alarms_say_in_their_history_that_they_were_deleted(
    world: ScalingWorld, delete: Callable[[ScalingWorld], None]
) -> None:
    world.endpoint_with(2).track()
    names = {alarm["AlarmName"] for alarm in world.call("DescribeAlarms")["MetricAlarms"]}
    assert len(names) == 2
    world.now_s += 60
    delete(world)
    assert world.call("DescribeAlarms")["MetricAlarms"] == []
    assert deletions(world).keys() == names


@pytest.mark.parametrize(
    ("operation", "members"),
    [
        ("DeleteInferenceComponent", {"InferenceComponentName": "ic"}),
        ("DeleteEndpoint", {"EndpointName": "demo"}),
    ],
)
def test_those_of_a_component_go_with_it_and_with_its_endpoint(
    world: ScalingWorld, operation: str, members: dict[str, str]
) -> None:
    world.endpoint_with(1)
    add_component(world)
    world.now_s += 60
    call_sagemaker(world, operation, **members)
    assert world.call("DescribeAlarms")["MetricAlarms"] == []
    assert len(deletions(world)) == 2


def test_one_that_was_deleted_before_its_policy_is_not_deleted_twice(world: ScalingWorld) -> None:
    world.endpoint_with(2).track()
    delete_alarms(world)
    delete_policy(world)
    items = world.call("DescribeAlarmHistory")["AlarmHistoryItems"]
    assert sum("deleted" in item["HistorySummary"] for item in items) == 2


def test_the_users_alarm_of_a_step_policy_stays(world: ScalingWorld) -> None:
    world.endpoint_with(2)
    step = {"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}
    policy = world.call(
        "PutScalingPolicy", **RESOURCE, PolicyName="step", PolicyType="StepScaling",
        StepScalingPolicyConfiguration={
            "AdjustmentType": "ChangeInCapacity", "StepAdjustments": [step],
        },
    )  # fmt: skip
    world.call(
        "PutMetricAlarm", AlarmName="mine", Namespace="own", MetricName="x", Statistic="Sum",
        Period=60, EvaluationPeriods=1, Threshold=1.0, ComparisonOperator="GreaterThanThreshold",
        AlarmActions=[policy["PolicyARN"]],
    )  # fmt: skip
    deregister(world)
    assert [a["AlarmName"] for a in world.call("DescribeAlarms")["MetricAlarms"]] == ["mine"]
    items = world.call("DescribeAlarmHistory")["AlarmHistoryItems"]
    assert [item["HistorySummary"] for item in items] == ['Alarm "mine" created']
