"""Scalable targets on a real endpoint: a real load, real instances, unmodified boto3."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.config import Config

from tests.fixtures.registry import Registry
from tests.integration.serve.served import Served, wait_until

POLICY = {
    "TargetValue": 2.0,
    "PredefinedMetricSpecification": {
        "PredefinedMetricType": "SageMakerVariantConcurrentRequestsPerModelHighResolution"
    },
}
SLOW = "delay=1"


def register(served: Served, name: str, maximum: int, mode: str) -> dict[str, str]:
    """A scalable target with a target-tracking policy; returns its resource."""
    autoscaling = served.client("application-autoscaling")
    resource = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{name}/variant/main",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
    autoscaling.register_scalable_target(
        **resource, MinCapacity=1, MaxCapacity=maximum, Tags={"zeropull:scaling": mode}
    )
    answer = autoscaling.put_scaling_policy(
        **resource,
        PolicyName="concurrency",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration=POLICY,
    )
    assert [alarm["AlarmName"].split("-Alarm")[1][:3] for alarm in answer["Alarms"]] == [
        "Hig", "Low",
    ]  # fmt: skip
    return resource


@contextmanager
def load(served: Served, name: str, concurrency: int) -> Iterator[list[Exception]]:
    """So many requests of a second each, all the time; yields the errors."""
    stop = threading.Event()
    errors: list[Exception] = []
    once = Config(retries={"total_max_attempts": 1}, max_pool_connections=concurrency)

    def work() -> None:
        runtime = served.client("sagemaker-runtime", config=once)
        while not stop.is_set():
            try:
                runtime.invoke_endpoint(EndpointName=name, Body=b"x", CustomAttributes=SLOW)
            except Exception as error:
                errors.append(error)
                stop.wait(0.2)

    threads = [threading.Thread(target=work) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    try:
        yield errors
    finally:
        stop.set()
        for thread in threads:
            thread.join(70)


def activities(served: Served, resource: dict[str, str]) -> list[dict[str, Any]]:
    autoscaling = served.client("application-autoscaling")
    found = autoscaling.describe_scaling_activities(**resource, IncludeNotScaledActivities=True)
    return list(found["ScalingActivities"])


def wait_for_count(served: Served, name: str, count: int, timeout_s: float) -> None:
    sagemaker = served.client("sagemaker")
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        variant = sagemaker.describe_endpoint(EndpointName=name)["ProductionVariants"][0]
        if variant["CurrentInstanceCount"] == count:
            return
        threading.Event().wait(0.5)
    raise AssertionError(f"{count} instances expected after {timeout_s} s: {variant}")


def test_a_high_resolution_policy_scales_out_under_load(served: Served, registry: Registry) -> None:
    served.create("hot", f"{registry.address}/server:1")
    served.wait_in_service("hot")
    resource = register(served, "hot", maximum=2, mode="aws")
    with load(served, "hot", concurrency=6) as errors:
        wait_for_count(served, "hot", 2, 120)
    assert errors == []
    cloudwatch = served.client("cloudwatch")
    alarms = cloudwatch.describe_alarms(AlarmNamePrefix="TargetTracking-endpoint/hot")
    high = next(a for a in alarms["MetricAlarms"] if "AlarmHigh" in a["AlarmName"])
    assert (high["Period"], high["EvaluationPeriods"], high["Statistic"]) == (10, 3, "Maximum")
    done = wait_until(
        "the activity has ended",
        lambda: [one for one in activities(served, resource) if one["StatusCode"] == "Successful"],
    )
    assert done[0]["Description"] == "Setting desired instance count to 2."
    assert f"monitor alarm {high['AlarmName']} in state ALARM" in done[0]["Cause"]
    assert "AlarmHigh" in served.cli("explain", "hot") or "scales from 1 to 2" in served.cli(
        "explain", "hot"
    )
    metrics = cloudwatch.list_metrics(Namespace="AWS/SageMaker")["Metrics"]
    names = {metric["MetricName"] for metric in metrics}
    assert {"ConcurrentRequestsPerModel", "Invocations", "ModelLatency"} <= names


def test_the_fast_mode_answers_one_burst_once_and_names_its_limit(
    served: Served, registry: Registry
) -> None:
    served.create("fast", f"{registry.address}/server:1")
    served.wait_in_service("fast")
    resource = register(served, "fast", maximum=3, mode="fast")
    with load(served, "fast", concurrency=12) as errors:
        wait_for_count(served, "fast", 3, 90)
        deadline = time.monotonic() + 20
        explained = ""
        while "AlreadyAtMaxCapacity" not in explained and time.monotonic() < deadline:
            explained = served.cli("explain", "fast")
            threading.Event().wait(0.5)
    assert errors == []
    assert "the maximum of 3 is reached" in explained.replace("\n    ", " ")
    changes = [one for one in activities(served, resource) if not one.get("NotScaledReasons")]
    assert [one["Description"] for one in changes] == ["Setting desired instance count to 3."]
    launches = json.loads(served.cli("timeline", "fast", "--json"))["launches"]
    assert "requests in flight" in launches[-1]["reason"]
