"""What the plan for an endpoint does in every state, with time as an argument."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.reconcilers.endpoint_world import (
    DIGEST,
    SETTINGS,
    World,
    deployment,
    endpoint,
    serving,
)
from tests.unit.reconcilers.memory_world import shape_of
from zeropull.controlapi.messages import EndpointRoute
from zeropull.reconcilers.plan import Effect
from zeropull.reconcilers.planning import plan_endpoint
from zeropull.reconcilers.publishing.routes import endpoint_route
from zeropull.resources.endpoint_configs import (
    BlueGreenPolicy,
    CapacitySize,
    RollingPolicy,
    UpdatePolicy,
)
from zeropull.resources.endpoints import DeployedImage, EndpointStatus
from zeropull.resources.instances import InstanceState


def route_of(world: World) -> EndpointRoute:
    view = replace(world.view(), announces=world.announced)
    return endpoint_route(
        view, queue_limit=1, max_concurrency={}, component_concurrency={}, held=frozenset()
    )


def scale(world: World, count: int) -> World:
    current = world.endpoint.current
    assert current is not None
    variants = tuple(replace(v, desired_instances=count) for v in current.variants)
    world.endpoint = replace(
        world.endpoint,
        status=EndpointStatus.UPDATING,
        current=replace(current, variants=variants),
        modified_s=world.now_s,
    )
    return world


def update(world: World, count: int = 1, policy: UpdatePolicy | None = None) -> World:
    new = deployment(count, started_s=world.now_s, policy=policy)
    world.endpoint = replace(world.endpoint, status=EndpointStatus.UPDATING, pending=new)
    return world


def test_creation_asks_for_digests_before_it_wants_instances() -> None:
    world = World(endpoint(deployment(2, resolved=False)))
    world.plan()
    assert world.resolves == [world.endpoint.pending.deployment_id]
    assert not world.instances


def test_creation_wants_every_instance_with_its_copy_and_timeline() -> None:
    world = World(endpoint(deployment(2)))
    world.plan()
    assert len(world.instances) == len(world.copies) == len(world.timelines) == 2
    assert {c.manifest_digest for c in world.copies.values()} == {DIGEST}


def test_creation_ends_in_service_only_when_every_copy_is_in_rotation() -> None:
    world = World(endpoint(deployment(2)))
    world.rounds(3)
    assert world.endpoint.status is EndpointStatus.CREATING
    first = next(iter(world.copies))
    world.copies[first] = replace(world.copies[first], state="healthy")
    world.rounds(2)
    assert world.endpoint.status is EndpointStatus.CREATING
    world.set_copies("healthy").rounds(2)
    assert world.endpoint.status is EndpointStatus.IN_SERVICE
    assert world.endpoint.pending is None
    assert world.endpoint.current.variants[0].current_instances == 2


def test_a_creation_waits_for_a_gateway_that_is_down_and_says_so() -> None:
    world = World(endpoint(deployment(1)), gateway_up=False)
    assert world.settle(4).endpoint.status is EndpointStatus.CREATING
    assert world.endpoint.waiting == "no gateway has reported that it has the routes"
    world.gateway_up = True
    world.rounds(1)
    assert world.endpoint.status is EndpointStatus.IN_SERVICE
    assert world.rounds(1).endpoint.waiting == ""


def test_a_creation_is_announced_to_the_gateways_before_it_is_in_service() -> None:
    world = World(endpoint(deployment(1)))
    world.rounds(2)
    world.set_copies("healthy").plan()
    assert world.announced
    assert world.endpoint.status is EndpointStatus.CREATING
    assert route_of(world).status == "InService"
    world.plan()
    assert world.endpoint.status is EndpointStatus.IN_SERVICE


def test_what_a_registry_is_waited_for_is_told() -> None:
    pending = deployment(1, resolved=False)
    world = World(endpoint(pending), resolve_waits={pending.deployment_id: "the registry is busy"})
    world.plan()
    assert world.endpoint.waiting == "the registry is busy"
    assert world.endpoint.is_stuck


def test_an_endpoint_is_out_of_service_while_nothing_of_it_runs() -> None:
    world = serving(2)
    world.lost = {i.instance_id: f"instance {i.instance_id} is gone" for i in world.running()}
    world.plan()
    assert world.endpoint.status is EndpointStatus.OUT_OF_SERVICE
    assert "is gone" in world.endpoint.failure_reason
    assert route_of(world).status == "InService", "requests wait: they are not refused for good"
    world.lost = {}
    world.settle(6)
    assert world.endpoint.status is EndpointStatus.IN_SERVICE
    assert world.endpoint.failure_reason == ""


def test_an_endpoint_with_one_instance_left_stays_in_service() -> None:
    world = serving(2)
    dead = world.running()[0].instance_id
    world.lost = {dead: "it is gone"}
    world.plan()
    assert world.endpoint.status is EndpointStatus.IN_SERVICE


def test_a_scale_out_beyond_the_fleet_says_why_it_waits_and_can_be_replaced() -> None:
    world = scale(serving(1, capacity=1), 5)
    world.rounds(3)
    assert world.endpoint.status is EndpointStatus.UPDATING
    assert "4 instance(s) of variant main cannot be had now" in world.endpoint.waiting
    assert "1 of 1 instances are in use" in world.endpoint.waiting
    assert world.endpoint.is_stuck
    scale(world, 1)
    world.rounds(8)
    assert world.endpoint.status is EndpointStatus.IN_SERVICE
    assert world.endpoint.waiting == ""
    assert len(world.instances) == 1


def test_a_failed_resolution_fails_the_creation_with_its_reason() -> None:
    pending = deployment(1, resolved=False)
    world = World(endpoint(pending), resolve_failures={pending.deployment_id: "no such tag"})
    world.plan()
    assert world.endpoint.status is EndpointStatus.FAILED
    assert world.endpoint.failure_reason == "no such tag"


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        ("health_timeout", "did not pass the ping health check"),
        ("container_exited", "did not pass the ping health check"),
        ("container_start", "CannotStartContainerError"),
        ("image_not_found", "make sure all images"),
        ("model_not_found", "Failed to download model data"),
        ("disk_full", "Unable to provision"),
    ],
)
def test_a_failed_copy_fails_the_creation_and_its_instances_go(failure: str, text: str) -> None:
    world = World(endpoint(deployment(2)))
    world.rounds(2)
    world.set_copies("failed", failure=failure, message="because of this: do that")
    world.plan()
    assert world.endpoint.status is EndpointStatus.FAILED
    assert text in world.endpoint.failure_reason
    assert "do that" in world.endpoint.failure_reason
    world.rounds(3)
    assert not world.instances


def test_a_failure_reason_never_exceeds_what_the_api_allows() -> None:
    world = World(endpoint(deployment(1)))
    world.rounds(2)
    world.set_copies("failed", failure="health_timeout", message="x" * 5000).plan()
    assert len(world.endpoint.failure_reason) == 1024


def test_missing_capacity_is_waited_for_and_then_fails_the_creation() -> None:
    world = World(endpoint(deployment(1)), capacity=0)
    world.rounds(5)
    assert world.endpoint.status is EndpointStatus.CREATING
    assert len(world.launches) > 1
    world.now_s = SETTINGS.provision_timeout_s + 1
    world.plan()
    assert world.endpoint.status is EndpointStatus.FAILED
    assert "0 of 0 instances are in use" in world.endpoint.failure_reason


def test_an_instance_that_dies_during_creation_is_replaced() -> None:
    world = World(endpoint(deployment(1)))
    world.rounds(2)
    dead = world.running()[0].instance_id
    world.lost = {dead: f"instance {dead} is gone"}
    world.rounds(6)
    assert dead not in world.instances
    assert world.settle(3).endpoint.status is EndpointStatus.IN_SERVICE


def test_instances_that_die_again_and_again_fail_the_creation() -> None:
    world = World(endpoint(deployment(1)))
    for _ in range(60):
        world.plan()
        world.lost = {i.instance_id: "it is gone" for i in world.running()}
        world.now_s += 2
    assert world.endpoint.status is EndpointStatus.FAILED


def test_nothing_is_decided_for_an_endpoint_that_is_as_it_should_be() -> None:
    world = serving(2)
    draft = plan_endpoint(world.view(), world.now_s, SETTINGS, shape_of)
    assert not draft.actions
    assert not draft.decisions
    assert draft.endpoint == world.endpoint


def test_scale_out_uses_the_recorded_digest_and_resolves_nothing() -> None:
    world = scale(serving(1), 3).settle(4)
    assert world.endpoint.status is EndpointStatus.IN_SERVICE
    assert len(world.running()) == 3
    assert world.resolves == []


def test_scale_in_takes_the_instance_with_the_fewest_requests() -> None:
    world = serving(3)
    busy = {c.copy_id: 5 for c in world.copies.values()}
    idle = sorted(world.copies)[1]
    world.in_flight = busy | {idle: 0}
    victim = world.copies[idle].instance_id
    scale(world, 2).plan()
    assert world.instances[victim].state is InstanceState.DRAINING


def test_a_draining_instance_is_not_stopped_while_requests_are_in_flight() -> None:
    world = serving(2)
    world.in_flight = dict.fromkeys(world.copies, 1)
    scale(world, 1).rounds(10)
    states = sorted(i.state for i in world.instances.values())
    assert states == [InstanceState.DRAINING, InstanceState.RUNNING]
    world.in_flight = {}
    world.rounds(4)
    assert len(world.instances) == 1
    assert world.endpoint.status is EndpointStatus.IN_SERVICE


def test_a_drain_ends_at_its_limit() -> None:
    world = serving(2)
    world.in_flight = dict.fromkeys(world.copies, 1)
    scale(world, 1).rounds(2)
    world.now_s += SETTINGS.drain_s
    world.rounds(3)
    assert len(world.instances) == 1


def test_a_scale_out_without_capacity_rolls_back_to_what_there_is() -> None:
    world = scale(serving(1, capacity=1), 2)
    world.rounds(3)
    assert world.endpoint.status is EndpointStatus.UPDATING
    world.now_s += SETTINGS.provision_timeout_s
    world.rounds(4)
    assert world.endpoint.status is EndpointStatus.IN_SERVICE
    assert "instances are in use" in world.endpoint.failure_reason
    assert len(world.instances) == 1


def test_a_lost_instance_is_replaced_while_the_endpoint_stays_in_service() -> None:
    world = serving(2)
    dead = world.running()[0].instance_id
    world.lost = {dead: "the node has not reported for 30 s"}
    world.plan()
    assert world.endpoint.status is EndpointStatus.IN_SERVICE
    new = [i for i in world.instances.values() if i.state is InstanceState.WANTED]
    assert len(new) == 1
    assert dead in new[0].reason
    assert len(world.settle(6).running()) == 2


def test_repeated_replacements_back_off() -> None:
    world = serving(1)
    waits = []
    for _ in range(4):
        world.set_copies("failed", failure="container_exited", message="it exited").plan()
        new = max(world.instances.values(), key=lambda i: i.attempts)
        assert new.next_attempt_s is not None
        waits.append(new.next_attempt_s - world.now_s)
        world.now_s = new.next_attempt_s
        world.rounds(3, step_s=0.1)
    assert waits == sorted(waits)
    assert waits[-1] >= 4 * waits[0]


def test_an_instance_that_was_replaced_a_thousand_times_is_replaced_again() -> None:
    world = serving(1)
    (instance,) = world.running()
    world.instances[instance.instance_id] = replace(instance, attempts=2000)
    world.set_copies("failed", failure="container_exited", message="it exited").plan()
    new = max(world.instances.values(), key=lambda i: i.attempts)
    assert new.next_attempt_s == world.now_s + SETTINGS.retry_max_s


def test_a_copy_that_does_not_answer_ping_for_long_is_replaced() -> None:
    world = serving(1)
    copy_id = next(iter(world.copies))
    world.set_copies("unhealthy")
    world.unhealthy = {copy_id: world.now_s}
    world.rounds(2)
    assert len(world.instances) == 1
    world.now_s += SETTINGS.unhealthy_s
    world.plan()
    assert len(world.instances) == 2


def test_an_update_switches_only_when_the_whole_new_fleet_is_healthy() -> None:
    world = update(serving(2), 2)
    old = {i.instance_id for i in world.running()}
    world.rounds(3)
    assert len(world.running()) == 4
    assert all(v.shifted_instances == 0 for v in world.endpoint.pending.variants)
    world.settle(8)
    assert world.endpoint.status is EndpointStatus.IN_SERVICE
    assert not old & set(world.instances)
    assert len(world.instances) == 2


def test_the_old_fleet_is_drained_not_cut() -> None:
    world = update(serving(1), 1)
    old = next(iter(world.copies))
    world.in_flight = {old: 3}
    world.settle(8)
    assert world.endpoint.status is EndpointStatus.IN_SERVICE
    assert world.instances[world.copies[old].instance_id].state is InstanceState.DRAINING
    world.in_flight = {}
    world.rounds(4)
    assert old not in world.copies


def test_a_new_fleet_that_fails_is_rolled_back_and_the_old_one_serves_on() -> None:
    world = update(serving(2), 2)
    old = {i.instance_id for i in world.running()}
    world.rounds(2)
    world.set_copies("failed", of=world.endpoint.pending, failure="health_timeout", message="no")
    world.rounds(8)
    assert world.endpoint.status is EndpointStatus.IN_SERVICE
    assert world.endpoint.pending is None
    assert "ping health check" in world.endpoint.failure_reason
    assert set(world.instances) == old


def test_an_update_without_room_says_so_while_it_waits() -> None:
    world = update(serving(1, capacity=1), 1)
    world.rounds(4)
    status = world.endpoint.pending.variants[0].statuses[0]
    assert "1 of 1 instances are in use" in status.message
    assert len(world.running()) == 1


def test_a_rolling_update_without_room_drains_first() -> None:
    policy = UpdatePolicy(blue_green=None, rolling=RollingPolicy(CapacitySize("INSTANCE_COUNT", 1)))
    world = update(serving(2, capacity=2), 2, policy)
    new = world.endpoint.pending.deployment_id
    world.settle(40)
    assert world.endpoint.status is EndpointStatus.IN_SERVICE
    assert {i.deployment_id for i in world.running()} == {new}


def test_a_rolling_update_never_has_more_than_a_batch_beside_the_fleet() -> None:
    policy = UpdatePolicy(
        blue_green=None, rolling=RollingPolicy(CapacitySize("CAPACITY_PERCENT", 50))
    )
    world = update(serving(4), 4, policy)
    most = 0
    for _ in range(40):
        world.settle(1)
        most = max(most, len(world.running()))
    assert world.endpoint.status is EndpointStatus.IN_SERVICE
    assert most == 6


def test_a_canary_is_baked_before_the_rest_is_shifted() -> None:
    policy = UpdatePolicy(BlueGreenPolicy("CANARY", 60.0, canary=CapacitySize("INSTANCE_COUNT", 1)))
    world = update(serving(4), 4, policy).settle(6)
    assert world.endpoint.pending.variants[0].shifted_instances == 1
    world.now_s += 60
    world.settle(2)
    assert world.endpoint.pending.variants[0].shifted_instances == 4
    world.now_s += 60
    assert world.settle(4).endpoint.status is EndpointStatus.IN_SERVICE


def test_a_linear_update_moves_in_steps() -> None:
    policy = UpdatePolicy(
        BlueGreenPolicy("LINEAR", 10.0, linear_step=CapacitySize("CAPACITY_PERCENT", 25))
    )
    world = update(serving(4), 4, policy).settle(5)
    seen = []
    for _ in range(5):
        if world.endpoint.pending is not None:
            seen.append(world.endpoint.pending.variants[0].shifted_instances)
        world.now_s += 10
        world.settle(1)
    assert seen[:4] == [1, 2, 3, 4]


def test_an_alarm_while_baking_rolls_the_update_back() -> None:
    policy = UpdatePolicy(BlueGreenPolicy("ALL_AT_ONCE", 60.0), rollback_alarms=("errors",))
    world = update(serving(1), 1, policy).settle(5)
    world.alarms = frozenset({"errors"})
    world.plan()
    assert world.endpoint.status is EndpointStatus.ROLLING_BACK
    assert world.settle(5).endpoint.status is EndpointStatus.IN_SERVICE


@pytest.mark.parametrize("rounds", range(6))
def test_an_endpoint_can_be_deleted_at_any_point_of_its_life(rounds: int) -> None:
    world = World(endpoint(deployment(2)))
    world.settle(rounds)
    world.endpoint = replace(world.endpoint, status=EndpointStatus.DELETING)
    world.rounds(8)
    assert world.gone
    assert not world.instances
    assert not world.copies


def test_a_failed_endpoint_can_be_deleted() -> None:
    world = World(endpoint(deployment(1)))
    world.rounds(2)
    world.set_copies("failed", failure="health_timeout").rounds(3)
    world.endpoint = replace(world.endpoint, status=EndpointStatus.DELETING)
    assert world.rounds(2).gone


def test_the_record_stays_until_the_image_cache_is_purged() -> None:
    world = World(replace(endpoint(deployment(1)), status=EndpointStatus.DELETING))
    draft = plan_endpoint(replace(world.view(), has_cache=True), 1.0, SETTINGS, shape_of)
    assert not draft.is_gone


def test_a_delete_does_not_wait_long_for_requests() -> None:
    world = serving(1)
    world.in_flight = dict.fromkeys(world.copies, 9)
    world.endpoint = replace(world.endpoint, status=EndpointStatus.DELETING)
    world.rounds(2)
    assert not world.gone
    assert world.rounds(6).gone


def test_a_plan_that_was_written_but_not_carried_out_is_carried_out_by_the_next() -> None:
    world = World(endpoint(deployment(2)))
    draft = plan_endpoint(world.view(), 0.0, SETTINGS, shape_of)
    world.endpoint = draft.endpoint
    world.instances, world.copies = dict(draft.instances), dict(draft.copies)
    again = plan_endpoint(world.view(), 1.0, SETTINGS, shape_of)
    assert {a.target for a in again.actions if a.effect is Effect.LAUNCH} == set(world.instances)
    assert set(again.instances) == set(world.instances)


def test_an_instance_that_was_being_launched_at_the_crash_is_launched_again() -> None:
    world = World(endpoint(deployment(1)))
    world.plan()
    instance = next(iter(world.instances.values()))
    world.instances[instance.instance_id] = replace(instance, state=InstanceState.LAUNCHING)
    draft = plan_endpoint(world.view(), 1.0, SETTINGS, shape_of)
    assert [a.effect for a in draft.actions] == [Effect.LAUNCH]


def test_a_termination_that_was_interrupted_is_asked_for_again() -> None:
    world = serving(1)
    instance = world.running()[0]
    world.instances[instance.instance_id] = replace(
        instance, state=InstanceState.TERMINATING, terminating_s=world.now_s - 100
    )
    draft = plan_endpoint(world.view(), world.now_s, SETTINGS, shape_of)
    assert Effect.TERMINATE in [a.effect for a in draft.actions]


def test_resolution_after_a_restart_keeps_what_was_resolved() -> None:
    world = World(endpoint(deployment(1)))
    variant = world.endpoint.pending.variants[0]
    assert variant.images == (DeployedImage(variant.containers[0].image, DIGEST, 0.0),)
    world.rounds(3)
    assert world.resolves == []


def test_a_clock_that_is_set_back_holds_no_launch_up() -> None:
    world = World(endpoint(deployment(1)), now_s=7200.0, capacity=0)
    world.rounds(2)
    world.engine.capacity = 1
    world.now_s -= 3600.0
    world.plan()
    assert len(world.running()) == 1


def test_a_clock_that_is_set_back_holds_no_drain_up() -> None:
    world = serving(2)
    scale(world, 1).plan()
    world.now_s -= 3600.0
    world.rounds(3)
    assert len(world.instances) == 1
