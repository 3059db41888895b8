"""What Prometheus is told follows from the store and the nodes' reports."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from zeropull.admin.metrics import ControlPlaneMetrics
from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.messages import LabelledCounter, NodeReport
from zeropull.nodeagent.readings import agent_counters, image_counters
from zeropull.resources.endpoints import Endpoint, EndpointStatus
from zeropull.resources.instances import TimelineRecord
from zeropull.resources.stages import Stage, StageRecord
from zeropull.statestore import Store


def test_a_nodes_counters_keep_the_labels_they_have(tmp_path: Path) -> None:
    counters = agent_counters(
        registry_bytes=7,
        model_store_bytes=8,
        verification_failures=2,
    )
    labelled = (
        *image_counters({"cached": 3, "fallback": 1}, {"layer_damaged": 1, "no_generation": 4}),
        LabelledCounter("zeropull_odd", 'a="', "", 1.0),
        LabelledCounter("zeropull_quoted_total", "reason", 'said "no"\n', 1.0),
    )
    counters |= {"zeropull_snapshotter_hits_total": 24, "zeropull_snapshotter_misses_total": 1}
    exchange = Exchange()
    for number in (1, 2):
        exchange.take_node_report(
            NodeReport(
                f"i-{number}",
                1,
                10.0,
                1.0,
                counters={**counters, 'odd{a="': 1.0},
                labelled_counters=labelled,
            ),
            now_s=10.0,
        )
    with Store.open(tmp_path / "s.db") as store:
        text = ControlPlaneMetrics(store, exchange).render().decode()
    lines = text.splitlines()
    for line in (
        'zeropull_node_image_fallbacks_total{instance="i-1",reason="layer_damaged"} 1.0',
        'zeropull_node_image_fallbacks_total{instance="i-2",reason="no_generation"} 4.0',
        'zeropull_node_images_total{instance="i-1",path="cached"} 3.0',
        'zeropull_node_registry_bytes_total{instance="i-1"} 7.0',
        'zeropull_node_model_store_bytes_total{instance="i-1"} 8.0',
        'zeropull_node_verification_failures_total{instance="i-1"} 2.0',
        r'zeropull_quoted_total{instance="i-1",reason="said \"no\"\n"} 1.0',
        'zeropull_snapshotter_hits_total{instance="i-2"} 24.0',
        'zeropull_snapshotter_misses_total{instance="i-2"} 1.0',
    ):
        assert line in lines, text
    assert "odd" not in text
    assert sum(line.startswith("# TYPE zeropull_node_images_total ") for line in lines) == 1


def test_states_launches_and_node_counters_are_exposed(tmp_path: Path) -> None:
    exchange = Exchange()
    exchange.take_node_report(
        NodeReport("i-1", 1, 10.0, 1.0, counters={"layer_hits_total": 8}), now_s=10.0
    )
    stage = StageRecord(Stage.IMAGE, 5.0, 5.5, {"registry": 0, "volume": 42}, 8, 8, "cached")
    with Store.open(tmp_path / "s.db") as store:
        store.put(Endpoint("1", "e", "arn", "uid", EndpointStatus.IN_SERVICE, 1.0, 1.0))
        store.put(
            TimelineRecord(
                "c-1", "i-1", "1", "uid", "e", "v", "d", "ml.g5.xlarge", 5.0, stages=(stage,)
            )
        )
        text = ControlPlaneMetrics(store, exchange).render().decode()
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["zeropull_endpoint_status", "1", "InService", "e"] == 1
    assert samples["zeropull_launches", "1", "cached", "e"] == 1
    assert samples["zeropull_launch_bytes", "1", "e", "volume"] == 42
    assert samples["zeropull_launch_stage_seconds", "1", "e", "image"] == 0.5
    assert samples["zeropull_node_layer_hits_total", "i-1"] == 8
