"""One client that floods PutMetricData, or sends bodies that are costly to parse, stops nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.fixtures.aws_api import ACCOUNT, INSTANCE_TYPES, REGION, Served, serving
from zeropull.api import Call, Operation, OperationTable, create_api_app
from zeropull.api.cloudwatch import cloudwatch_table
from zeropull.api.keys import create_key, ensure_default_key
from zeropull.api.request_rates import PUT_METRIC_DATA
from zeropull.awsprotocol.limits import MAX_CONTAINERS
from zeropull.metricstore.store import MetricStore
from zeropull.resources.accounts import Account
from zeropull.statestore import Store

DATUM = {"MetricName": "m", "Value": 1.0}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """CloudWatch, with a clock that stands still: no bucket fills up again."""
    now_s = time.time()
    with Store.open(tmp_path / "zeropull.db") as store:
        key, _ = ensure_default_key(store, ACCOUNT, now_s)
        metrics = MetricStore(tmp_path / "metrics.db")
        app = create_api_app(
            store,
            region=REGION,
            instance_types=INSTANCE_TYPES,
            tables=[cloudwatch_table(store, metrics)],
            clock=lambda: now_s,
        )
        with serving(app) as url:
            yield Served(url, store, key, lambda: now_s)
        metrics.close()


def test_a_flood_is_throttled_and_nobody_else_is(served: Served) -> None:
    flooding = served.client("cloudwatch")
    for _ in range(int(PUT_METRIC_DATA.burst)):
        flooding.put_metric_data(Namespace="ns", MetricData=[DATUM])
    with pytest.raises(ClientError) as raised:
        flooding.put_metric_data(Namespace="ns", MetricData=[DATUM])
    error, metadata = raised.value.response["Error"], raised.value.response["ResponseMetadata"]
    assert (error["Code"], metadata["HTTPStatusCode"]) == ("Throttling", 400)
    assert flooding.describe_alarms()["MetricAlarms"] == []
    served.store.put(Account("1" * 12, "other", 0.0))
    served.key = create_key(served.store, "1" * 12, 0.0)
    served.client("cloudwatch").put_metric_data(Namespace="ns", MetricData=[DATUM])


def test_a_body_with_too_many_lists_never_reaches_the_parser(served: Served) -> None:
    client = served.client("cloudwatch")
    with pytest.raises(ClientError, match="lists and objects") as raised:
        client.put_metric_data(Namespace="ns", MetricData=[DATUM] * (MAX_CONTAINERS + 1))
    assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == 413


def test_large_bodies_and_answers_are_worked_on_beside_the_loop(tmp_path: Path) -> None:
    threads: dict[str, str] = {}

    def prepare(call: Call, members: dict[str, Any]) -> dict[str, Any]:
        threads[members["Namespace"]] = threading.current_thread().name
        return members

    def put(call: Call, members: dict[str, Any]) -> None:
        threads["handler"] = threading.current_thread().name

    row = Operation("PutMetricData", put, prepare=prepare)
    with Store.open(tmp_path / "zeropull.db") as store:
        key, _ = ensure_default_key(store, ACCOUNT, time.time())
        app = create_api_app(
            store,
            region=REGION,
            instance_types=INSTANCE_TYPES,
            tables=[OperationTable("cloudwatch", (row,))],
        )
        with serving(app) as url:
            client = Served(url, store, key, time.time).client("cloudwatch")
            client.put_metric_data(Namespace="small", MetricData=[DATUM])
            client.put_metric_data(Namespace="large", MetricData=[DATUM] * 1000)
    assert threads["small"] == threads["handler"]
    assert threads["large"].startswith("large-body")
