"""What gateways and nodes report becomes SageMaker's metrics, with their statistics and periods."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zeropull.controlapi.messages import CopyReading, NodeReport
from zeropull.metricstore.queries import MetricStat, series_of
from zeropull.metricstore.store import MetricStore
from zeropull.scaling.metrics import Resource, publish_readings, publish_utilization

ACCOUNT = "000000000000"
NOW_S = 1_790_000_040
VARIANT = {"EndpointName": "demo", "VariantName": "main"}
COMPONENT = {"InferenceComponentName": "part"}


@pytest.fixture
def metrics(tmp_path: Path) -> Iterator[MetricStore]:
    made = MetricStore(tmp_path / "metrics.db")
    yield made
    made.close()


def reading(copy_id: str = "c0", second: int = NOW_S, **more: Any) -> CopyReading:
    members: dict[str, Any] = {
        "account": ACCOUNT, "endpoint": "demo", "variant": "main", "copy_id": copy_id,
        "instance_id": f"i-{copy_id}", "component": None, "second": second, "in_flight_max": 0,
        "in_flight_min": 0, "in_flight_integral": 0.0,
    }  # fmt: skip
    return CopyReading(**(members | more))


def values(
    metrics: MetricStore,
    name: str,
    statistic: str,
    period_s: int = 60,
    dimensions: dict[str, str] = VARIANT,
    namespace: str = "AWS/SageMaker",
) -> list[float]:
    stat = MetricStat(namespace, name, dimensions, statistic, period_s)
    return list(series_of(metrics, ACCOUNT, stat, NOW_S, NOW_S + 60).values())


def test_concurrency_has_a_sample_per_copy_and_queued_requests_are_shared(
    metrics: MetricStore,
) -> None:
    loads = publish_readings(
        metrics,
        [
            reading("c0", in_flight_max=4, in_flight_min=1, in_flight_integral=2.5),
            reading("c1", in_flight_max=7, in_flight_min=2, in_flight_integral=3.5),
            reading("", in_flight_max=4, in_flight_integral=2.0, queue_age_max_s=1.5),
            reading("c0", NOW_S + 12, in_flight_max=3, in_flight_integral=3.0),
        ],
    )
    name = "ConcurrentRequestsPerModel"
    assert values(metrics, name, "Maximum", 10) == [9.0, 3.0]
    assert values(metrics, name, "Minimum", 10) == [1.0, 0.0]
    assert values(metrics, name, "Maximum", 60) == [9.0]
    load = loads[Resource(ACCOUNT, "demo", "main"), NOW_S]
    assert (load.load, load.queue_age_s, load.copies) == (8.0, 1.5, 2)


def test_a_copy_that_two_gateways_use_is_one_copy(metrics: MetricStore) -> None:
    loads = publish_readings(
        metrics,
        [
            reading("c0", in_flight_max=4, in_flight_integral=2.5, invocations=3),
            reading("c0", in_flight_max=2, in_flight_integral=1.5, invocations=1),
        ],
    )
    assert values(metrics, "ConcurrentRequestsPerModel", "Maximum", 10) == [6.0]
    assert values(metrics, "InvocationsPerInstance", "Sum") == [4.0]
    load = loads[Resource(ACCOUNT, "demo", "main"), NOW_S]
    assert (load.load, load.copies) == (4.0, 1)


def test_every_invocation_counts_for_its_share_of_the_instances(metrics: MetricStore) -> None:
    publish_readings(
        metrics, [reading("c0", invocations=6), reading("c1", invocations=2), reading("")]
    )
    assert values(metrics, "Invocations", "Sum") == [8.0]
    assert values(metrics, "InvocationsPerInstance", "Sum") == [4.0]


def test_a_variant_without_traffic_publishes_zeros(metrics: MetricStore) -> None:
    publish_readings(metrics, [reading("c0")])
    assert values(metrics, "Invocations", "Sum") == [0.0]
    assert values(metrics, "InvocationsPerInstance", "Sum") == [0.0]
    assert values(metrics, "ConcurrentRequestsPerModel", "Maximum", 10) == [0.0]
    assert values(metrics, "ModelLatency", "Average") == []


def test_the_average_of_errors_is_the_share_that_failed(metrics: MetricStore) -> None:
    publish_readings(
        metrics,
        [
            reading("c0", invocations=8, errors_4xx=2, errors_5xx=0, model_errors=3),
            reading("c1", invocations=2, errors_5xx=2),
        ],
    )
    assert values(metrics, "Invocation4XXErrors", "Average") == [0.2]
    assert values(metrics, "Invocation5XXErrors", "Sum") == [2.0]
    assert values(metrics, "InvocationModelErrors", "Average") == [0.3]


def test_latencies_have_percentiles_in_microseconds(metrics: MetricStore) -> None:
    for second in range(10):
        publish_readings(
            metrics,
            [
                reading(
                    second=NOW_S + second,
                    invocations=100,
                    model_latency_us=tuple(range(1000 + second, 101_000, 1000)),
                    overhead_latency_us=(500, 0),
                )
            ],
        )
    assert values(metrics, "ModelLatency", "p99")[0] == pytest.approx(99_000, rel=0.015)
    assert values(metrics, "ModelLatency", "SampleCount") == [1000.0]
    assert values(metrics, "ModelLatency", "Maximum") == [100_009.0]
    assert values(metrics, "OverheadLatency", "Minimum") == [0.0]
    keys = metrics.keys(ACCOUNT, name="ModelLatency", now_s=NOW_S)
    assert [key.unit for key in keys] == ["Microseconds"]


def test_components_have_metrics_of_their_own(metrics: MetricStore) -> None:
    publish_readings(
        metrics,
        [
            reading("c0", component="part", in_flight_max=5, invocations=3),
            reading("", component="part", no_capacity=2, invocations=0),
        ],
    )
    assert values(metrics, "ConcurrentRequestsPerCopy", "Maximum", 10, COMPONENT) == [5.0]
    assert values(metrics, "InvocationsPerCopy", "Sum", 60, COMPONENT) == [3.0]
    assert values(metrics, "NoCapacityInvocationFailures", "Sum", 60, COMPONENT) == [2.0]
    assert values(metrics, "Invocations", "Sum") == []


def test_what_nodes_measure_is_published_by_the_minute(metrics: MetricStore) -> None:
    for second, percent in ((0, 40.0), (20, 80.0)):
        report = NodeReport("i", 1, NOW_S + second, NOW_S, utilization={"CPUUtilization": percent})
        publish_utilization(metrics, report, ACCOUNT, "demo", "main")
    namespace = "/aws/sagemaker/Endpoints"
    assert values(metrics, "CPUUtilization", "Average", namespace=namespace) == [60.0]
    assert metrics.keys(ACCOUNT, namespace=namespace, now_s=NOW_S)[0].unit == "Percent"
