"""The control plane's figures for Prometheus; the gateway adds its own and serves both."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.messages import LabelledCounter
from zeropull.resources.endpoints import Endpoint
from zeropull.resources.image_caches import ImageCacheRecord
from zeropull.resources.instances import CopyRecord, Instance, TimelineRecord
from zeropull.resources.stages import Stage
from zeropull.statestore import Store
from zeropull.statestore.cached_kind import CachedKind

LABELS = ("account", "endpoint")
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_LABEL = re.compile(r"([a-zA-Z_][a-zA-Z0-9_]*)?")


class ControlPlaneMetrics(Collector):
    """The figures are read from the store at every scrape: a restart loses and doubles nothing.

    Launch figures cover the launches that the store remembers.
    """

    def __init__(self, store: Store, exchange: Exchange) -> None:
        # Kept in memory: reading ten thousand copies at each scrape would hold the event loop.
        self._endpoints = CachedKind(store, Endpoint)
        self._instances = CachedKind(store, Instance)
        self._copies = CachedKind(store, CopyRecord)
        self._caches_known = CachedKind(store, ImageCacheRecord)
        self._timelines = CachedKind(store, TimelineRecord)
        self._exchange = exchange
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        yield from self._states()
        yield from self._caches()
        yield from self._launches()
        yield from self._nodes()

    def _states(self) -> Iterator[Metric]:
        endpoints = GaugeMetricFamily(
            "zeropull_endpoint_status",
            "1 for the status of each endpoint",
            labels=(*LABELS, "status"),
        )
        for endpoint in self._endpoints.all():
            endpoints.add_metric([endpoint.account, endpoint.name, endpoint.status.value], 1)
        yield endpoints
        instances: Counter[tuple[str, ...]] = Counter(
            (i.account, i.endpoint, i.variant, i.state.value) for i in self._instances.all()
        )
        yield _gauge(
            "zeropull_instances", "Instances by state", (*LABELS, "variant", "state"), instances
        )
        copies: Counter[tuple[str, ...]] = Counter(
            (c.account, c.endpoint, c.variant, c.state) for c in self._copies.all()
        )
        yield _gauge("zeropull_copies", "Copies by state", (*LABELS, "variant", "state"), copies)
        restarts: Counter[tuple[str, ...]] = Counter()
        for copy in self._copies.all():
            restarts[copy.account, copy.endpoint, copy.variant] += copy.restarts
        yield _gauge(
            "zeropull_copy_restarts",
            "Restarts of the copies there are",
            (*LABELS, "variant"),
            restarts,
        )

    def _caches(self) -> Iterator[Metric]:
        newest = GaugeMetricFamily(
            "zeropull_image_cache_generation",
            "Newest published generation, 0 = none",
            labels=LABELS,
        )
        size = GaugeMetricFamily(
            "zeropull_image_cache_bytes", "Size of the newest generation", labels=LABELS
        )
        for record in self._caches_known.all():
            generation = record.newest_published
            labels = [record.account, record.endpoint]
            newest.add_metric(labels, generation.number if generation else 0)
            size.add_metric(labels, generation.size_bytes if generation else 0)
        yield newest
        yield size

    def _launches(self) -> Iterator[Metric]:
        launches: Counter[tuple[str, ...]] = Counter()
        received: Counter[tuple[str, ...]] = Counter()
        seconds: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for record in self._timelines.all():
            labels = (record.account, record.endpoint)
            for stage in record.stages:
                if stage.ended_s is not None:
                    seconds[(*labels, stage.stage.value)] += max(0.0, stage.ended_s - stage.began_s)
                for source, count in stage.bytes_by_source.items():
                    received[(*labels, source)] += count
                if stage.stage is Stage.IMAGE and stage.path:
                    launches[(*labels, stage.path)] += 1
        yield _gauge(
            "zeropull_launches", "Remembered launches by image path", (*LABELS, "path"), launches
        )
        yield _gauge(
            "zeropull_launch_bytes",
            "Bytes of those launches by source",
            (*LABELS, "source"),
            received,
        )
        yield _gauge(
            "zeropull_launch_stage_seconds",
            "Seconds of those launches",
            (*LABELS, "stage"),
            seconds,
        )

    def _nodes(self) -> Iterator[Metric]:
        """Counters that the node agents report. Each has the instance as a label; some have a label
        of their own, as `zeropull_node_image_fallbacks_total{reason="plugin"}`."""
        families: dict[tuple[str, str], CounterMetricFamily] = {}
        for instance_id, received in sorted(self._exchange.nodes.items()):
            report = received.report
            plain = (LabelledCounter(n, "", "", v) for n, v in sorted(report.counters.items()))
            for counter in (*plain, *report.labelled_counters):
                if not (_NAME.fullmatch(counter.name) and _LABEL.fullmatch(counter.label)):
                    continue  # of an agent of another version
                labels = ("instance", counter.label) if counter.label else ("instance",)
                family = families.setdefault(
                    (counter.name, counter.label), _counter(counter.name, labels)
                )
                values = [instance_id, counter.of][: len(labels)]
                family.add_metric(values, counter.value)
        yield from families.values()


def _counter(name: str, labels: Sequence[str]) -> CounterMetricFamily:
    full = name if name.startswith("zeropull_") else f"zeropull_node_{name}"
    return CounterMetricFamily(full, "As the node agents report it", labels=labels)


def _gauge(
    name: str, text: str, labels: tuple[str, ...], counts: Mapping[tuple[str, ...], float]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, count in sorted(counts.items()):
        family.add_metric(list(values), count)
    return family
