"""The API over an empty store, and a boto3 client of SageMaker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.awsapi import ACCOUNT, INSTANCE_TYPES, REGION, Served, serving
from zeropull.api import create_api_app
from zeropull.api.keys import ensure_default_key
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
