"""The API over an empty store with a client of SageMaker; and with scaling and an endpoint."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.aws_api import ACCOUNT, INSTANCE_TYPES, REGION, Served, serving
from tests.integration.api.scaling_clients import Clients, create_endpoint
from zeropull.api import create_api_app
from zeropull.api.applicationautoscaling import (
    autoscaling_table,
    let_go_of_endpoint,
    refuse_lost_targets,
)
from zeropull.api.cloudwatch import cloudwatch_table
from zeropull.api.keys import ensure_default_key
from zeropull.api.sagemaker import EndpointHooks
from zeropull.metricstore.store import MetricStore
from zeropull.statestore import Store


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Store.open(tmp_path / "zeropull.db") as store:
        key, made = ensure_default_key(store, ACCOUNT, time.time())
        assert made
        state = Served("", store, key, time.time)
        app = create_api_app(
            store, region=REGION, instance_types=INSTANCE_TYPES, clock=lambda: state.clock()
        )
        with serving(app) as url:
            state.url = url
            yield state


@pytest.fixture
def sagemaker(served: Served) -> Any:
    return served.client("sagemaker")


@pytest.fixture
def clients(tmp_path: Path) -> Iterator[Clients]:
    """An endpoint `ep` in service, with the variants `v1` and `v2`."""
    with Store.open(tmp_path / "zeropull.db") as store:
        key, _ = ensure_default_key(store, ACCOUNT, time.time())
        metrics = MetricStore(tmp_path / "metrics.db")
        app = create_api_app(
            store,
            region=REGION,
            instance_types=INSTANCE_TYPES,
            tables=[autoscaling_table(store), cloudwatch_table(store, metrics)],
            hooks=EndpointHooks(
                before_update=partial(refuse_lost_targets, store),
                on_delete=partial(let_go_of_endpoint, store),
            ),
        )
        with serving(app) as url:
            made = Clients(Served(url, store, key, time.time))
            create_endpoint(made)
            yield made
        metrics.close()
