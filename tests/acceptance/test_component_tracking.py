"""Copies follow a real load by target tracking, in both modes; instances follow the copies.

Scale-in by target tracking takes a quarter of an hour, on AWS and here: that test is `slow`. The
other one scales in by an alarm of its own with a step policy.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.config import Config

from tests.acceptance.component_user import TYPES, ComponentUser
from tests.acceptance.serving import Server, running_server, wait_until
from tests.fixtures.registry import Registry

METRIC = "SageMakerInferenceComponentConcurrentRequestsPerCopyHighResolution"
CONCURRENCY = 6
MODES = ("aws", "fast")
QUIET_S = 1140  # 15 minutes of readings below the target, and some more


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings: dict[str, Any] = {**TYPES, "endpoints": {"retry_s": 0.5, "idle_release_s": 3.0}}
    with running_server(tmp_path_factory.mktemp("zp"), **settings) as server:
        yield server


@pytest.fixture
def user(server: Server) -> Iterator[ComponentUser]:
    user = ComponentUser(server)
    yield user
    user.clean_up()


def resource_of(name: str) -> dict[str, str]:
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"inference-component/{name}",
        "ScalableDimension": "sagemaker:inference-component:DesiredCopyCount",
    }


def track(server: Server, name: str, mode: str, **more: Any) -> None:
    autoscaling = server.client("application-autoscaling")
    autoscaling.register_scalable_target(
        **resource_of(name), MinCapacity=1, MaxCapacity=2, Tags={"zeropull:scaling": mode}
    )
    autoscaling.put_scaling_policy(
        **resource_of(name),
        PolicyName="concurrency",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={
            "TargetValue": 2.0,
            "PredefinedMetricSpecification": {"PredefinedMetricType": METRIC},
            "ScaleOutCooldown": 0,
            "ScaleInCooldown": 0,
            **more,
        },
    )


@contextlib.contextmanager
def load(server: Server, endpoint: str, names: tuple[str, ...]) -> Iterator[list[Exception]]:
    """So many requests of a second each to every component, all the time; yields the errors."""
    stop = threading.Event()
    errors: list[Exception] = []
    once = Config(retries={"total_max_attempts": 1}, read_timeout=70)

    def ask(name: str) -> None:
        runtime = server.client("sagemaker-runtime", config=once)
        while not stop.is_set():
            try:
                runtime.invoke_endpoint(
                    EndpointName=endpoint,
                    InferenceComponentName=name,
                    Body=b"x",
                    CustomAttributes="delay=1",
                )
            except Exception as error:
                errors.append(error)
                stop.wait(0.2)

    threads = [threading.Thread(target=ask, args=(n,)) for n in names for _ in range(CONCURRENCY)]
    for thread in threads:
        thread.start()
    try:
        yield errors
    finally:
        stop.set()
        for thread in threads:
            thread.join(70)


def causes(server: Server, name: str, description: str) -> list[str]:
    client = server.client("application-autoscaling")
    found = client.describe_scaling_activities(**resource_of(name))["ScalingActivities"]
    return [one["Cause"] for one in found if one["Description"] == description]


def scale_out(user: ComponentUser, registry: Registry, endpoint: str, **more: Any) -> None:
    """Three components on two instances; the load makes it five copies on three."""
    server = user.server
    user.make_endpoint(endpoint, maximum=4)
    for name in (*MODES, "bystander"):
        user.create(endpoint, name, f"{registry.address}/server:1", accelerators=1)
        user.wait_serves(name)
    for mode in MODES:
        track(server, mode, mode, **more)
    assert len(server.instances(endpoint)) == 2
    with load(server, endpoint, MODES) as errors:
        for mode in reversed(MODES):
            user.wait_serves(mode, 2, 150)
    assert errors == []
    assert user.describe("bystander")["RuntimeConfig"]["DesiredCopyCount"] == 1
    assert len(server.instances(endpoint)) == 3
    (cause,) = causes(server, "aws", "Setting desired copy count to 2.")
    assert "AlarmHigh" in cause
    assert "in state ALARM triggered policy concurrency" in cause
    (cause,) = causes(server, "fast", "Setting desired copy count to 2.")
    assert "requests in flight" in cause


def test_copies_follow_the_load_and_instances_follow_the_copies(
    server: Server, user: ComponentUser, registry: Registry
) -> None:
    scale_out(user, registry, "followed", DisableScaleIn=True)
    policy = server.client("application-autoscaling").put_scaling_policy(
        **resource_of("aws"),
        PolicyName="idle",
        PolicyType="StepScaling",
        StepScalingPolicyConfiguration={
            "AdjustmentType": "ChangeInCapacity",
            "MetricAggregationType": "Maximum",
            "Cooldown": 10,
            "StepAdjustments": [{"MetricIntervalUpperBound": 0, "ScalingAdjustment": -1}],
        },
    )
    user.put_alarm(
        "aws-is-idle",
        AlarmActions=[policy["PolicyARN"]],
        Namespace="AWS/SageMaker",
        MetricName="ConcurrentRequestsPerCopy",
        Dimensions=[{"Name": "InferenceComponentName", "Value": "aws"}],
        Statistic="Maximum",
        Period=10,
        EvaluationPeriods=2,
        Threshold=0.5,
        ComparisonOperator="LessThanThreshold",
    )
    user.wait_serves("aws", 1, 120)
    (cause,) = causes(server, "aws", "Setting desired copy count to 1.")
    assert "monitor alarm aws-is-idle in state ALARM triggered policy idle" in cause
    assert user.describe("fast")["RuntimeConfig"]["DesiredCopyCount"] == 2
    wait_until("four copies are on two instances", lambda: len(server.instances("followed")) == 2)


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_target_tracking_scales_in_again_after_a_quarter_of_an_hour(
    server: Server, user: ComponentUser, registry: Registry
) -> None:
    scale_out(user, registry, "ebbing")
    for mode in MODES:
        user.wait_serves(mode, 1, QUIET_S)
    (cause,) = causes(server, "aws", "Setting desired copy count to 1.")
    assert "AlarmLow" in cause
    (cause,) = causes(server, "fast", "Setting desired copy count to 1.")
    assert "requests in flight in 15 minutes" in cause
    wait_until("three copies are on two instances", lambda: len(server.instances("ebbing")) == 2)
