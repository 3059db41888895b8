"""Turns what gateways and nodes report into SageMaker's metrics.

Source: "Metrics for monitoring Amazon SageMaker AI with CloudWatch". Concurrency has one-second
points here, from which 10-second ones are read; everything else is kept by the minute. A variant
without traffic publishes zeros, which is what lets target tracking scale in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice

from zeropull.controlapi.messages import CopyReading, NodeReport
from zeropull.metricstore.points import Point
from zeropull.metricstore.scaling_metrics import SAGEMAKER
from zeropull.metricstore.store import MetricKey, MetricStore

UTILIZATION = "/aws/sagemaker/Endpoints"
PIECE = 50
"""Seconds of resources after which others get their turn: some 5 ms."""
COUNT, MICROSECONDS, PERCENT = "None", "Microseconds", "Percent"


@dataclass(slots=True)
class LoadSecond:
    """One second of one variant (or component): what the fast mode decides from.

    `load`: mean requests in flight, those that wait in the queue included.
    """

    load: float = 0.0
    queue_age_s: float = 0.0
    copies: int = 0


@dataclass(frozen=True, slots=True, order=True)
class Resource:
    """A variant of an endpoint, or a component of one."""

    account: str
    endpoint: str
    variant: str
    component: str | None = None

    @property
    def dimensions(self) -> dict[str, str]:
        if self.component is not None:
            return {"InferenceComponentName": self.component}
        return {"EndpointName": self.endpoint, "VariantName": self.variant}


@dataclass(slots=True)
class SecondReadings:
    """All readings of one second of one resource."""

    copies: list[CopyReading] = field(default_factory=list)
    queues: list[CopyReading] = field(default_factory=list)


def publish_readings(
    store: MetricStore, readings: Iterable[CopyReading]
) -> dict[tuple[Resource, int], LoadSecond]:
    """As `publish_steps`, all at once; returns the loads."""
    loads: dict[tuple[Resource, int], LoadSecond] = {}
    for _ in publish_steps(store, readings, loads):
        pass
    return loads


def publish_steps(
    store: MetricStore,
    readings: Iterable[CopyReading],
    loads: dict[tuple[Resource, int], LoadSecond],
) -> Iterator[None]:
    """Add the readings to the store, and the load by resource and second to `loads`. A caller may
    do something else after each step."""
    seconds: dict[tuple[Resource, int], SecondReadings] = defaultdict(SecondReadings)
    for reading in readings:
        resource = Resource(reading.account, reading.endpoint, reading.variant, reading.component)
        found = seconds[resource, reading.second]
        (found.copies if reading.copy_id else found.queues).append(reading)
    for (resource, second), found in seconds.items():
        found.copies = _one_per_copy(found.copies)
        everything = found.copies + found.queues
        loads[resource, second] = LoadSecond(
            load=sum(reading.in_flight_integral for reading in everything),
            queue_age_s=max(reading.queue_age_max_s for reading in everything),
            copies=len(found.copies),
        )
    yield
    walk = iter(seconds.items())
    while piece := list(islice(walk, PIECE)):
        with store.together():
            for (resource, second), found in piece:
                _publish_concurrency(store, resource, second, found)
                _publish_invocations(store, resource, second, found)
        yield


def _one_per_copy(readings: list[CopyReading]) -> list[CopyReading]:
    """While one gateway follows another, both send requests to the same copy: what the copy had is
    the sum of both. The two extremes need not fall together, so that the sum may be too far out."""
    by_copy: dict[str, CopyReading] = {}
    for reading in readings:
        other = by_copy.get(reading.copy_id)
        by_copy[reading.copy_id] = reading if other is None else _sum(other, reading)
    return list(by_copy.values())


def _sum(one: CopyReading, other: CopyReading) -> CopyReading:
    return replace(
        one,
        in_flight_max=one.in_flight_max + other.in_flight_max,
        in_flight_min=one.in_flight_min + other.in_flight_min,
        in_flight_integral=one.in_flight_integral + other.in_flight_integral,
        invocations=one.invocations + other.invocations,
        errors_4xx=one.errors_4xx + other.errors_4xx,
        errors_5xx=one.errors_5xx + other.errors_5xx,
        model_errors=one.model_errors + other.model_errors,
        no_capacity=one.no_capacity + other.no_capacity,
        queue_age_max_s=max(one.queue_age_max_s, other.queue_age_max_s),
        model_latency_us=one.model_latency_us + other.model_latency_us,
        overhead_latency_us=one.overhead_latency_us + other.overhead_latency_us,
    )


def half_loads(halves: Iterable[CopyReading]) -> dict[tuple[Resource, int], LoadSecond]:
    """The load by resource of seconds that have not ended; nothing of it is a metric."""
    loads: dict[tuple[Resource, int], LoadSecond] = defaultdict(LoadSecond)
    for half in halves:
        resource = Resource(half.account, half.endpoint, half.variant, half.component)
        load = loads[resource, half.second]
        load.load += half.in_flight_integral
        load.queue_age_s = max(load.queue_age_s, half.queue_age_max_s)
    return dict(loads)


def publish_utilization(
    store: MetricStore, report: NodeReport, account: str, endpoint: str, variant: str
) -> None:
    """The node's own figures, in percent, by the minute."""
    dimensions = Resource(account, endpoint, variant).dimensions
    for name, value in report.utilization.items():
        key = MetricKey.of(account, UTILIZATION, name, dimensions, PERCENT)
        store.observe(key, report.sent_at_s, value)


def _publish_concurrency(
    store: MetricStore, resource: Resource, second: int, gathered: SecondReadings
) -> None:
    """One sample per copy. Requests that wait at the gateway have no copy yet: they count for all
    copies alike, as they would if each copy had its own queue."""
    name = "ConcurrentRequestsPerCopy" if resource.component else "ConcurrentRequestsPerModel"
    key = _key(resource, name, COUNT)
    share = max(1, len(gathered.copies))
    waiting_most = sum(queue.in_flight_max for queue in gathered.queues) / share
    waiting_least = sum(queue.in_flight_min for queue in gathered.queues) / share
    waiting_mean = sum(queue.in_flight_integral for queue in gathered.queues) / share
    for copy in gathered.copies:
        point = Point(
            count=1,
            total=copy.in_flight_integral + waiting_mean,
            least=copy.in_flight_min + waiting_least,
            most=copy.in_flight_max + waiting_most,
        )
        store.add(key, second, point, resolution=1)


def _publish_invocations(
    store: MetricStore, resource: Resource, second: int, gathered: SecondReadings
) -> None:
    everything = gathered.copies + gathered.queues
    invocations = sum(reading.invocations for reading in everything)
    copies = max(1, len({reading.copy_id for reading in gathered.copies}))
    per_unit = "InvocationsPerCopy" if resource.component else "InvocationsPerInstance"
    _add_counts(store, resource, second, "Invocations", invocations, 1.0)
    _add_counts(store, resource, second, per_unit, invocations, 1.0 / copies)
    no_capacity = sum(reading.no_capacity for reading in everything)
    if no_capacity and resource.component:
        _add_counts(store, resource, second, "NoCapacityInvocationFailures", no_capacity, 1.0)
    if not invocations:
        return
    errors: Mapping[str, int] = {
        "Invocation4XXErrors": sum(reading.errors_4xx for reading in everything),
        "Invocation5XXErrors": sum(reading.errors_5xx for reading in everything),
        "InvocationModelErrors": sum(reading.model_errors for reading in everything),
    }
    for name, failed in errors.items():
        # 1 for every failed invocation and 0 for every other: the average is the share that failed.
        point = Point(invocations, failed, 1.0 if failed == invocations else 0.0, min(failed, 1))
        key = _key(resource, name, COUNT)
        store.add(key, second, point)
    _publish_latency(store, resource, second, everything)


def _publish_latency(
    store: MetricStore, resource: Resource, second: int, readings: list[CopyReading]
) -> None:
    samples = {
        "ModelLatency": [value for each in readings for value in each.model_latency_us],
        "OverheadLatency": [value for each in readings for value in each.overhead_latency_us],
    }
    for name, values in samples.items():
        point = Point()
        point.add_all(values)
        if values:
            key = _key(resource, name, MICROSECONDS)
            store.add(key, second, point)


@lru_cache(maxsize=8192)
def _key(resource: Resource, name: str, unit: str) -> MetricKey:
    return MetricKey.of(resource.account, SAGEMAKER, name, resource.dimensions, unit)


def _add_counts(
    store: MetricStore, resource: Resource, second: int, name: str, count: int, each: float
) -> None:
    key = _key(resource, name, COUNT)
    point = Point(max(count, 1), count * each, each if count else 0.0, each if count else 0.0)
    store.add(key, second, point)
