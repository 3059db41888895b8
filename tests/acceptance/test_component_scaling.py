"""Copies follow the load, to zero and back: AWS's own example, and held requests."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.acceptance.component_user import TYPES, ComponentUser
from tests.acceptance.serving import Server, running_server, stage_of, wait_until
from tests.fixtures.registry import Registry

DIMENSION = "sagemaker:inference-component:DesiredCopyCount"
POLICY = {
    "TargetValue": 2.0,
    "PredefinedMetricSpecification": {
        "PredefinedMetricType": (
            "SageMakerInferenceComponentConcurrentRequestsPerCopyHighResolution"
        )
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("zp"), **TYPES) as server:
        yield server


@pytest.fixture
def user(server: Server) -> Iterator[ComponentUser]:
    user = ComponentUser(server)
    yield user
    user.clean_up()


def register(server: Server, name: str, mode: str, maximum: int = 2) -> dict[str, str]:
    """A scalable target from zero copies on; returns its resource."""
    resource = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"inference-component/{name}",
        "ScalableDimension": DIMENSION,
    }
    server.client("application-autoscaling").register_scalable_target(
        **resource, MinCapacity=0, MaxCapacity=maximum, Tags={"zeropull:scaling": mode}
    )
    return resource


def activities(server: Server, resource: dict[str, str]) -> list[dict[str, Any]]:
    client = server.client("application-autoscaling")
    return list(client.describe_scaling_activities(**resource)["ScalingActivities"])


def test_held_requests_start_one_copy_and_are_all_answered(
    server: Server, user: ComponentUser, registry: Registry
) -> None:
    user.make_endpoint("held", minimum=0)
    user.create("held", "sleeper", f"{registry.address}/server:1")
    user.wait_serves("sleeper")
    resource = register(server, "sleeper", "fast")
    server.client("application-autoscaling").put_scaling_policy(
        **resource,
        PolicyName="concurrency",
        PolicyType="TargetTrackingScaling",
        # One copy is enough for all of them, also where it starts so slowly that they wait long.
        TargetTrackingScalingPolicyConfiguration={**POLICY, "TargetValue": 8.0},
    )
    before = len(user.launches("held", "sleeper"))
    user.scale("sleeper", 0)
    user.wait_serves("sleeper", 0)

    # Made before: making one takes about as long as a copy does to start.
    clients = [server.client("sagemaker-runtime") for _ in range(8)]

    def ask(number: int) -> tuple[bytes, dict[str, str]]:
        answer = clients[number].invoke_endpoint(
            EndpointName="held", InferenceComponentName="sleeper", Body=b"hello"
        )
        return answer["Body"].read(), answer["ResponseMetadata"]["HTTPHeaders"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert [body for body, _ in answers] == [b"hello"] * 8
    assert all(float(headers["x-zeropull-cold-start"]) > 0 for _, headers in answers)
    launches = user.launches("held", "sleeper")[before:]
    assert len(launches) == 1
    assert "wait, and there is no copy" in launches[0]["reason"]
    assert stage_of(launches[0], "detect")["ended_s"] - launches[0]["began_s"] < 1
    user.wait_serves("sleeper", 1)
    done = wait_until(
        "the activity ends",
        lambda: next(
            (a for a in activities(server, resource) if a["StatusCode"] == "Successful"), None
        ),
    )
    assert done["Description"] == "Setting desired copy count to 1."
    server.delete_endpoint("held")
    targets = server.client("application-autoscaling").describe_scalable_targets(
        ServiceNamespace="sagemaker"
    )["ScalableTargets"]
    assert targets == []


def test_the_alarm_on_missing_capacity_brings_the_first_copy_back(
    server: Server, user: ComponentUser, registry: Registry
) -> None:
    user.make_endpoint("aws", minimum=0)
    user.create("aws", "cold", f"{registry.address}/server:1")
    user.wait_serves("cold")
    resource = register(server, "cold", "aws")
    policy = server.client("application-autoscaling").put_scaling_policy(
        **resource,
        PolicyName="from-zero",
        PolicyType="StepScaling",
        StepScalingPolicyConfiguration={
            "AdjustmentType": "ChangeInCapacity",
            "MetricAggregationType": "Maximum",
            "Cooldown": 60,
            "StepAdjustments": [{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}],
        },
    )
    user.put_alarm(
        "cold-has-no-capacity",
        AlarmActions=[policy["PolicyARN"]],
        Namespace="AWS/SageMaker",
        MetricName="NoCapacityInvocationFailures",
        Dimensions=[{"Name": "InferenceComponentName", "Value": "cold"}],
        Statistic="Sum",
        Period=60,
        EvaluationPeriods=1,
        DatapointsToAlarm=1,
        Threshold=1,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
        TreatMissingData="missing",
    )
    user.scale("cold", 0)
    user.wait_serves("cold", 0)
    for _ in range(3):
        with pytest.raises(ClientError, match="no capacity to process this request") as refused:
            user.invoke("aws", "cold")
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    user.wait_serves("cold", 1, 150)
    assert user.invoke("aws", "cold") == b"hello"
    scaled = [a for a in activities(server, resource) if "copy count to 1" in a["Description"]]
    assert "monitor alarm cold-has-no-capacity in state ALARM" in scaled[0]["Cause"]
