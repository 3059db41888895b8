"""What nodes and gateways are told of component endpoints."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.reconcilers.component_world import (
    ACCOUNT,
    ComponentWorld,
    deployment,
    version,
    world,
)
from zeropull.controlapi.messages import ImagePath, NodeAssignment
from zeropull.reconcilers.components.slots import component_images
from zeropull.reconcilers.publishing.assignments import AssignmentBuilder
from zeropull.reconcilers.publishing.routes import component_endpoint_route
from zeropull.resources.components import ComponentStatus


def assignment(
    made: ComponentWorld, *, simulate: bool = True, cached: frozenset[str] | None = frozenset()
) -> NodeAssignment:
    instance = made.running()[0]
    builder = AssignmentBuilder("us-east-1", simulate, lambda image: None, {})
    return builder.build(
        replace(made.view(), cached={} if cached is None else {instance.instance_id: cached}),
        replace(instance, accelerators=("gpu=0", "gpu=1")),
        shape=None,
        image_path=ImagePath.AUTO,
        waits=["sha256:repo/b:1"],
    )


def test_an_assignment_carries_several_images_and_each_copys_own_accelerators() -> None:
    made = world()
    made.add("a", 1, version("repo/a:1", accelerators=1))
    made.add("b", 1, version("repo/b:1", accelerators=1))
    made.settle()
    told = assignment(made)
    waits = {image.reference: image.wait_for_generation for image in told.images}
    assert waits == {"repo/a:1": False, "repo/b:1": True}
    given = {copy.component: copy.limits.accelerators for copy in told.copies}
    assert sorted(given.values()) == [("gpu=0",), ("gpu=1",)]
    assert {copy.limits.simulated_accelerators for copy in told.copies} == {1}
    assert {copy.limits.simulated_accelerators for copy in assignment(made, simulate=False).copies}
    assert {copy.desired for copy in told.copies} == {"run"}


def test_a_copy_without_accelerators_gets_none() -> None:
    made = world()
    made.add("a")
    made.settle()
    (copy,) = assignment(made).copies
    assert copy.limits.accelerators == ()
    assert copy.limits.simulated_accelerators == 0


def test_a_copy_of_a_version_that_is_not_known_is_stopped() -> None:
    made = world()
    made.add("a")
    made.settle()
    made.components.clear()
    (copy,) = assignment(made).copies
    assert copy.desired == "stop"


def test_an_image_to_which_a_copy_may_come_back_stays_on_its_node() -> None:
    made = world()
    made.add("a", 1, version("repo/a:1"))
    made.add("b", 1, version("repo/b:1"))
    made.settle()
    made.scale("a", 0)
    made.settle()
    held = frozenset({"sha256:repo/a:1", "sha256:another"})
    assert [i.reference for i in assignment(made, cached=held).images] == ["repo/a:1", "repo/b:1"]
    assert [i.reference for i in assignment(made).images] == ["repo/b:1"]
    made.change("a", status=ComponentStatus.DELETING)
    assert [i.reference for i in assignment(made, cached=held).images] == ["repo/b:1"]


def test_an_image_that_is_not_to_be_cached_goes_with_its_last_copy() -> None:
    made = world()
    first = version("repo/a:1")
    made.add("a", 1, replace(first, spec=replace(first.spec, enable_caching=False)))
    made.add("b", 1, version("repo/b:1"))
    made.settle()
    held = frozenset({"sha256:repo/a:1", "sha256:repo/b:1"})
    keeps = {image.reference: image.keep for image in assignment(made, cached=held).images}
    assert keeps == {"repo/a:1": False, "repo/b:1": True}
    made.scale("a", 0)
    made.settle()
    assert [i.reference for i in assignment(made, cached=held).images] == ["repo/b:1"]


def test_what_a_node_holds_that_has_not_reported_yet_is_not_let_go() -> None:
    made = world()
    made.add("a", 1, version("repo/a:1"))
    made.settle()
    made.scale("a", 0)
    made.settle()
    assert [i.reference for i in assignment(made, cached=None).images] == ["repo/a:1"]


def test_routes_name_components_and_their_copies() -> None:
    made = world()
    made.add("a", 2)
    made.add("b")
    made.settle()
    made.scale("b", 0)
    made.plan()
    made.change("b", status=ComponentStatus.IN_SERVICE)
    route = component_endpoint_route(
        made.view(), 10, {(ACCOUNT, "a"): 4}, frozenset({"b", "unknown"})
    )
    assert route.component_based
    assert route.components == ("a", "b")
    assert route.held_components == ("b",)
    (variant,) = route.variants
    told = [(t.component, t.draining, t.max_concurrency) for t in variant.targets]
    assert sorted(told) == [("a", False, 4), ("a", False, 4), ("b", True, None)]


def test_a_component_that_goes_takes_no_requests() -> None:
    made = world()
    made.add("a")
    made.settle()
    made.change("a", status=ComponentStatus.DELETING)
    route = component_endpoint_route(made.view(), 10, {}, frozenset())
    assert route.components == ()
    assert route.variants[0].targets == ()


def test_the_image_cache_wants_every_image_but_those_of_deleted_components() -> None:
    made = world(deployment(1, 1))
    made.add("a", 1, version("repo/a:1"))
    made.add("b", 1, version("repo/b:1"))
    made.add("c", 1, version("repo/b:1"))
    made.settle()
    made.change("a", status=ComponentStatus.DELETING)
    assert component_images(made.components.values()) == {"sha256:repo/b:1": "repo/b:1"}
