"""One registry with the server image for all tests here, and a fresh `zeropull serve` for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fixtures.images import push_image
from tests.fixtures.registry import Registry, running_registry
from tests.fixtures.server_image import python_server_image
from tests.integration.serve.served import Served, running_serve


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with running_serve(tmp_path_factory.mktemp("zp")) as served:
        yield served


@pytest.fixture(scope="package")
def registry() -> Iterator[Registry]:
    with running_registry() as registry:
        push_image(registry.address, "server", "1", python_server_image())
        yield registry
