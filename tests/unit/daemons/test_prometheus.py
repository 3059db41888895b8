"""What Prometheus is told follows from the store and the nodes' reports."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.messages import NodeReport
from zeropull.daemons.prometheus import ControlPlaneMetrics
from zeropull.resources.endpoints import Endpoint, EndpointStatus
from zeropull.resources.instances import TimelineRecord
from zeropull.resources.stages import Stage, StageRecord
from zeropull.statestore import Store


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
