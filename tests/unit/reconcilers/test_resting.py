"""Endpoints rest when nothing is due; each kind of change wakes its own endpoint, and only that."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.reconcilers.controlled_world import SETTINGS, ControlledWorld, random_event
from zeropull.controlapi.messages import CopyState
from zeropull.reconcilers.endpoint_view import View
from zeropull.reconcilers.plan import Draft, Effect
from zeropull.reconcilers.resting import RECHECK_S, Rest, rest_of
from zeropull.resources.components import ComponentStatus
from zeropull.resources.endpoints import Endpoint, EndpointStatus
from zeropull.resources.instances import CopyIntent, Instance, InstanceState
from zeropull.resources.scaling import ScalableTarget
from zeropull.resources.tags import ResourceTags
from zeropull.statestore import Store


@pytest.fixture
def world(tmp_path: Path) -> Iterator[ControlledWorld]:
    with Store.open(tmp_path / "store.db") as store:
        yield ControlledWorld(store, tmp_path)


async def settled(world: ControlledWorld) -> ControlledWorld:
    world.add_plain("plain")
    world.add_shared("shared")
    await world.settle()
    # idle instances are released, and what was written last is looked at again
    for _ in range(10):
        await world.second()
    await world.settle()
    return world


def view_of(world: ControlledWorld, name: str) -> View:
    observer = world.control._observer
    return observer.observe(world.endpoint(name), world.control._gateways(), world.now_s)


async def test_endpoints_in_service_with_nothing_under_way_are_at_rest(
    world: ControlledWorld,
) -> None:
    await settled(world)
    for name in ("plain", "shared"):
        view = view_of(world, name)
        assert rest_of(view, Draft(view, world.now_s), SETTINGS) is not None
        assert world.targets(name)
    assert world.control._awake.pop() is None


def _with_instance(**changes: Any) -> Callable[[View], View]:
    return lambda view: replace(
        view, instances=(replace(view.instances[0], **changes), *view.instances[1:])
    )


def _with_copy(**changes: Any) -> Callable[[View], View]:
    return lambda view: replace(view, copies=(replace(view.copies[0], **changes), *view.copies[1:]))


def _with_component(**changes: Any) -> Callable[[View], View]:
    return lambda view: replace(view, components=(replace(view.components[0], **changes),))


def _with_endpoint(**changes: Any) -> Callable[[View], View]:
    return lambda view: replace(view, endpoint=replace(view.endpoint, **changes))


@pytest.mark.parametrize(
    "change",
    [
        _with_endpoint(status=EndpointStatus.UPDATING),
        _with_endpoint(status=EndpointStatus.DELETING),
        _with_endpoint(status=EndpointStatus.OUT_OF_SERVICE),
        _with_endpoint(status=EndpointStatus.FAILED),
        _with_endpoint(waiting="no room"),
        lambda view: _with_endpoint(pending=view.endpoint.current)(view),
        *(
            _with_instance(state=state)
            for state in InstanceState
            if state is not InstanceState.RUNNING
        ),
        _with_instance(leaving="of another type"),
        _with_instance(instance_id="i-unheard"),
        _with_copy(intent=CopyIntent.DRAIN),
        _with_copy(intent=CopyIntent.STOP),
        *(_with_copy(state=state) for state in CopyState if state is not CopyState.HEALTHY),
        _with_copy(routed_s=None),
        _with_component(status=ComponentStatus.UPDATING),
        _with_component(status=ComponentStatus.DELETING),
        _with_component(waiting="no room"),
        _with_component(current_copies=1),
        lambda view: _with_component(pending=view.components[0].current)(view),
        lambda view: _with_component(retired=(view.components[0].current,))(view),
        lambda view: replace(view, lost={"i-1": "gone"}),
        lambda view: replace(view, unhealthy_since_s={"c-1": 0.0}),
    ],
)
async def test_rest_is_not_entered_while_something_is_under_way(
    world: ControlledWorld, change: Callable[[View], View]
) -> None:
    await settled(world)
    view = change(view_of(world, "shared"))
    assert rest_of(view, Draft(view, world.now_s), SETTINGS) is None


async def test_rest_is_not_entered_in_a_round_that_decides_or_acts(world: ControlledWorld) -> None:
    await settled(world)
    view = view_of(world, "plain")
    decided, acted, announced, gone = (Draft(view, world.now_s) for _ in range(4))
    decided.decide("something", "x", "a test")
    acted.act(Effect.LAUNCH, "x", "a test")
    announced.announces = gone.is_gone = True
    for draft in (decided, acted, announced, gone):
        assert rest_of(view, draft, SETTINGS) is None


async def test_rest_ends_when_an_idle_instance_is_to_be_released(world: ControlledWorld) -> None:
    await settled(world)
    view = view_of(world, "shared")
    idle = _with_instance(idle_since_s=world.now_s - 1.0)(view)
    assert rest_of(idle, Draft(idle, world.now_s), SETTINGS) == Rest(
        world.now_s - 1.0 + SETTINGS.idle_release_s
    )


async def test_a_failed_endpoint_without_anything_is_at_rest(world: ControlledWorld) -> None:
    await settled(world)
    view = replace(
        _with_endpoint(status=EndpointStatus.FAILED)(view_of(world, "plain")), instances=()
    )
    assert rest_of(view, Draft(view, world.now_s), SETTINGS) == Rest()


def report_illness(world: ControlledWorld) -> None:
    [copy_id, *_] = sorted(world.targets("shared"))
    world.ill[copy_id] = CopyState.UNHEALTHY
    for instance in world.instances("shared"):
        world.report_from(instance.instance_id)


def answer_first(world: ControlledWorld) -> None:
    world.answered[min(world.targets("shared"))] = world.now_s
    world.report()
    world.control._gateways()


def fall_silent(world: ControlledWorld) -> None:
    silent = {each.instance_id for each in world.instances("shared")}
    for _ in range(int(SETTINGS.node_lost_s // 2)):
        world.now_s += 1.0
        for instance_id in world.machines.present.keys() - silent:
            world.report_from(instance_id)


def change_instance(world: ControlledWorld) -> None:
    world.store.put(replace(world.instances("shared")[0], failure="a test"))


def delete_instance(world: ControlledWorld) -> None:
    world.store.delete(Instance, world.instances("shared")[0].instance_id)


def change_endpoint(world: ControlledWorld) -> None:
    world.store.put(replace(world.endpoint("shared"), failure_reason="a test"))


def delete_endpoint(world: ControlledWorld) -> None:
    world.store.delete(Endpoint, world.endpoint("shared").key)


def limit_concurrency(world: ControlledWorld) -> None:
    arn = world.component("shared-0").arn
    world.store.put(ResourceTags(arn, {"zeropull:max-concurrency": "3"}))
    world.control._awake.wake(world.control._routes.changed())


def hold_requests(world: ControlledWorld) -> None:
    component = world.component("shared-0")
    target = ScalableTarget(
        component.account,
        "inference-component/shared-0",
        "sagemaker:inference-component:DesiredCopyCount",
        arn="arn:target",
        minimum=0,
        maximum=3,
        created_s=0.0,
    )
    world.store.put(target)
    world.store.put(ResourceTags("arn:target", {"zeropull:scaling": "fast"}))
    world.control._awake.wake(world.control._routes.changed())


@pytest.mark.parametrize(
    "change",
    [
        report_illness,
        answer_first,
        fall_silent,
        change_instance,
        delete_instance,
        change_endpoint,
        delete_endpoint,
        limit_concurrency,
        hold_requests,
        lambda world: world.scale("shared-0", 1),
    ],
)
async def test_every_kind_of_change_wakes_its_endpoint_and_no_other(
    world: ControlledWorld, change: Callable[[ControlledWorld], None]
) -> None:
    await settled(world)
    key = world.endpoint("shared").key
    change(world)
    world.control._awake.gather(world.now_s)
    assert world.control._awake.pop() == key
    assert world.control._awake.pop() is None


async def test_the_time_at_which_a_rule_acts_wakes_the_endpoint(world: ControlledWorld) -> None:
    await settled(world)
    view = view_of(world, "shared")
    awake = world.control._awake
    awake.note(view, Rest(world.now_s + 3.0))
    awake.gather(world.now_s + 2.9)
    assert awake.pop() is None
    awake.gather(world.now_s + 3.0)
    assert awake.pop() == view.endpoint.key


async def test_an_endpoint_with_a_silent_node_does_not_come_to_rest(world: ControlledWorld) -> None:
    await settled(world)
    view = view_of(world, "shared")
    fall_silent(world)
    world.control._awake.note(view, Rest())
    assert not world.control._awake.rests(view.endpoint.key)


async def test_an_instance_that_is_gone_wakes_its_endpoint(world: ControlledWorld) -> None:
    await settled(world)
    await world.control._sweeper.sweep()
    assert world.control._awake.pop() is None
    world.machines.present.pop(world.instances("shared")[0].instance_id)
    await world.control._sweeper.sweep()
    assert world.control._awake.pop() == world.endpoint("shared").key


async def test_what_rests_is_looked_at_again_after_a_while(world: ControlledWorld) -> None:
    await settled(world)
    assert world.control._awake.overdue() is None
    world.now_s += RECHECK_S
    first = world.control._awake.overdue()
    assert first is not None
    assert first in world.store.keys(Endpoint)


async def test_an_endpoint_that_failed_comes_to_rest_when_nothing_is_left_of_it(
    world: ControlledWorld,
) -> None:
    await settled(world)
    plain = world.endpoint("plain")
    world.store.put(replace(plain, status=EndpointStatus.FAILED, failure_reason="a test"))
    await world.settle()
    assert world.instances("plain") == []
    assert world.targets("plain") == set()


async def test_a_round_stops_in_time_and_the_next_goes_on(world: ControlledWorld) -> None:
    for number in range(4):
        world.add_plain(f"e{number}")
    world.now_s += 1.0
    for number in range(4):
        assert world.exchange.routes.message is None, "routes without some would take them away"
        assert len(world.store.endpoint_uids(Instance)) == number
        world.control._round(limit_s=0.0)
    assert world.control._awake.all_looked_at
    await world.control._effects.settle()
    await world.settle()
    assert all(world.targets(f"e{number}") for number in range(4))


async def test_an_endpoint_that_is_gone_takes_its_route_with_it(world: ControlledWorld) -> None:
    await settled(world)
    delete_endpoint(world)
    await world.second()
    assert world.targets("shared") == set()
    assert world.targets("plain")


@pytest.mark.parametrize("seed", range(4))
async def test_on_a_day_of_random_events_a_round_over_what_rests_changes_nothing(
    world: ControlledWorld, seed: int
) -> None:
    """So everything is as it would be if every round looked at every endpoint."""
    await settled(world)
    chance = random.Random(seed)
    rested, happened = 0, []
    for _ in range(60):
        happened.append(await random_event(world, chance))
        for _ in range(chance.choice([1, 2, 3, 20])):
            await world.second()
            world.control._awake.gather(world.now_s)
            world.control._awake.wake(world.control._routes.changed())
            gateways = world.control._gateways()
            for key in world.store.keys(Endpoint):
                if not world.control._awake.rests(key):
                    continue
                rested += 1
                before = world.store.revision, world.exchange.routes.message
                looked = world.control._look_at(key, gateways, world.now_s)
                assert looked.rest is not None, (key, happened[-5:])
                world.control._carry_on([looked], world.now_s)
                world.control._routes.publish(world.now_s)
                after = world.store.revision, world.exchange.routes.message
                assert after == before, (key, happened[-5:])
    assert rested > 100
