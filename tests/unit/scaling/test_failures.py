"""An error of one target is recorded, pauses that target and leaves the others alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.scaling.scaling_world import KEY, RESOURCE, ScalingWorld
from zeropull.autoscaler.readings import NotScaled
from zeropull.metricstore.points import Point
from zeropull.metricstore.store import MetricKey
from zeropull.resources.endpoints import Endpoint
from zeropull.resources.scaling import ScalingPolicy


@pytest.fixture
def world(tmp_path: Path) -> Iterator[ScalingWorld]:
    made = ScalingWorld(tmp_path)
    yield made
    made.close()


def damage_policy(world: ScalingWorld) -> ScalingPolicy:
    """Stored, readable, and nothing that the code foresaw; returns what it was."""
    policy = world.store.select(ScalingPolicy)[0].document
    world.store.put(replace(policy, request={}))
    return policy


def second_target(world: ScalingWorld) -> None:
    """Another endpoint, below the minimum of its target."""
    twin = replace(world.endpoint, name="twin", uid="v" * 32)
    world.store.put(twin)
    resource = RESOURCE | {"ResourceId": "endpoint/twin/variant/main"}
    world.call("RegisterScalableTarget", **resource, MinCapacity=3, MaxCapacity=5)


def test_an_unforeseen_error_of_one_target_leaves_the_others_alone(world: ScalingWorld) -> None:
    world.endpoint_with(1).track(5.0)
    damage_policy(world)
    second_target(world)
    world.seconds(15, load=18.0)
    twin = world.store.require(Endpoint, KEY.replace("demo", "twin")).document
    assert twin.current is not None
    assert twin.current.variants[0].desired_instances == 3


def test_an_unforeseen_error_is_an_activity_with_its_reason_once(world: ScalingWorld) -> None:
    world.endpoint_with(1).track(5.0)
    damage_policy(world)
    world.seconds(120, load=18.0)
    (activity,) = world.activities()
    assert activity.not_scaled == ({"Code": "InternalError"},)
    assert activity.status == "Failed"
    assert "KeyError: 'TargetTrackingScalingPolicyConfiguration'" in activity.cause
    decision = world.decision
    assert decision is not None
    assert decision.not_scaled is NotScaled.INTERNAL


def test_a_target_that_failed_is_decided_for_again_once_it_can_be(world: ScalingWorld) -> None:
    world.endpoint_with(1).track(5.0)
    policy = damage_policy(world)
    world.seconds(60, load=18.0)
    world.store.put(policy)
    world.seconds_until(4, limit=200)


def test_readings_that_cannot_be_kept_do_not_stop_the_decisions(world: ScalingWorld) -> None:
    """The metric store answers nothing; bounds need no readings."""
    world.endpoint_with(1)
    key = MetricKey.of("a", "n", "m", {})
    world.metrics.add(key, world.now_s, Point(1.0, 1.0, 1.0, 1.0))
    world.metrics._file.db.close()
    world.call("RegisterScalableTarget", **RESOURCE, MinCapacity=2)
    world.seconds(2)
    assert world.desired == 2


async def test_the_loop_outlives_every_kind_of_error(world: ScalingWorld) -> None:
    world.endpoint_with(1, Tags={"zeropull:scaling": "fast"}).track(5.0)
    damage_policy(world)
    world.metrics._file.db.close()
    running = asyncio.create_task(world.controller.run())
    try:
        async with asyncio.timeout(10):
            while not world.activities():
                world.now_s += 1.0
                world._report()
                await asyncio.sleep(0.05)
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
