"""Alarms in ALARM roll an update back; they are read from the store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.reconcilers import component_world
from tests.unit.reconcilers.endpoint_world import World, deployment, serving
from zeropull.reconcilers.rollback_alarms import rollback_alarms
from zeropull.resources.alarms import MetricAlarm
from zeropull.resources.endpoint_configs import BlueGreenPolicy, UpdatePolicy
from zeropull.resources.endpoints import EndpointStatus
from zeropull.statestore import Store

ACCOUNT = "000000000000"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "state.db") as made:
        yield made


def put_alarm(store: Store, name: str, state: str) -> None:
    store.put(MetricAlarm(ACCOUNT, name, f"arn:{name}", 1.0, 1.0, 1.0, state=state))


def test_an_alarm_in_alarm_while_baking_rolls_the_update_back(store: Store) -> None:
    put_alarm(store, "errors", "OK")
    put_alarm(store, "unrelated", "ALARM")
    world = updating("errors")
    world.alarms = rollback_alarms(store, world.endpoint)
    assert world.alarms == frozenset()
    world.settle(5)
    assert world.endpoint.status is EndpointStatus.UPDATING
    put_alarm(store, "errors", "ALARM")
    world.alarms = rollback_alarms(store, world.endpoint)
    assert world.alarms == {"errors"}
    world.plan()
    assert world.endpoint.status is EndpointStatus.ROLLING_BACK
    assert "alarm errors is in ALARM" in world.endpoint.failure_reason
    assert rollback_alarms(store, world.endpoint) == frozenset()


def test_the_alarms_of_a_components_update_are_looked_at_too(store: Store) -> None:
    put_alarm(store, "errors", "ALARM")
    put_alarm(store, "unrelated", "ALARM")
    made = component_world.world()
    made.add("one")
    made.settle()
    policy = UpdatePolicy(None, None, ("errors",))
    made.change("one", pending=component_world.version("repo/b:1", policy=policy))
    components = made.components.values()
    assert rollback_alarms(store, made.endpoint) == frozenset()
    assert rollback_alarms(store, made.endpoint, components) == {"errors"}


def updating(alarm: str) -> World:
    policy = UpdatePolicy(BlueGreenPolicy("ALL_AT_ONCE", 60.0), rollback_alarms=(alarm,))
    world = serving(1)
    world.endpoint = replace(
        world.endpoint,
        status=EndpointStatus.UPDATING,
        pending=deployment(1, started_s=world.now_s, policy=policy),
    )
    return world
