"""The engine in memory, by the suite of all engines."""

from __future__ import annotations

import pytest

from tests.fixtures.engine_suite import EngineSuite, Stage
from tests.fixtures.memory_engine import MemoryEngine
from tests.unit.reconcilers.endpoint_world import deployment, endpoint
from zeropull.reconcilers.engine import Engine


class TestMemoryEngine(EngineSuite):
    @pytest.fixture
    def stage(self) -> Stage:
        engine: Engine = MemoryEngine(capacity=2)
        return Stage(engine, endpoint(None, deployment()), lambda instance: None)
