"""One registry and one model store for all acceptance tests; root is needed for every one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.fixtures.images import push_image
from tests.fixtures.registry import Registry, running_registry
from tests.fixtures.s3 import Store, running_s3
from tests.fixtures.server_image import python_server_image


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        raise pytest.UsageError("the acceptance tests start real containers: run them as root")
    for item in items:
        item.add_marker(pytest.mark.timeout(280))


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    with running_registry() as registry:
        push_image(registry.address, "server", "1", python_server_image())
        yield registry


@pytest.fixture(scope="session")
def store() -> Iterator[Store]:
    with running_s3() as store:
        store.client().create_bucket(Bucket="artifacts")
        yield store
