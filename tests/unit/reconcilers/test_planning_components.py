"""Component endpoints: where copies go, when instances come and go, and how versions follow."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.reconcilers.component_world import deployment, version, world
from zeropull.resources.components import ComponentStatus
from zeropull.resources.endpoint_configs import CapacitySize, RollingPolicy, UpdatePolicy
from zeropull.resources.endpoints import EndpointStatus
from zeropull.resources.instances import InstanceState

IN_SERVICE, FAILED = ComponentStatus.IN_SERVICE, ComponentStatus.FAILED


def test_an_endpoint_is_in_service_with_its_instances_up_and_empty() -> None:
    made = world(deployment(initial=2))
    assert len(made.running()) == 2
    assert made.copies == {}
    assert made.endpoint.current.variants[0].current_instances == 2


def test_components_share_an_instance_and_scale_apart() -> None:
    made = world()
    for name in "abc":
        made.add(name)
    made.settle()
    assert [made.status(name) for name in "abc"] == [IN_SERVICE] * 3
    assert len(made.running()) == 1
    made.scale("a", 3)
    made.settle()
    assert [len(made.of(name)) for name in "abc"] == [3, 1, 1]
    assert made.components["a"].current_copies == 3
    assert len(made.running()) == 1
    made.scale("a", 0)
    made.settle()
    assert made.of("a") == []
    assert made.status("a") is IN_SERVICE


def test_accelerators_are_given_out_whole_and_once() -> None:
    made = world()
    made.add("a", 2, version(accelerators=1))
    made.settle()
    assert sorted(c.accelerators for c in made.of("a")) == [(0,), (1,)]
    assert len({c.instance_id for c in made.of("a")}) == 1


def test_what_fits_nowhere_makes_instances_up_to_the_maximum() -> None:
    made = world(deployment(1, 2))
    made.add("a", 5, version(accelerators=1))
    made.settle()
    assert len(made.running()) == 2
    assert len(made.of("a")) == 4
    assert made.status("a") is ComponentStatus.CREATING
    waiting = made.components["a"].waiting
    assert "not enough hardware resources" in waiting
    assert "0 accelerators are free on one of 2 instances; MaxInstanceCount is 2" in waiting


def test_the_last_accelerator_goes_to_who_waits_when_it_is_free() -> None:
    made = world(deployment(1, 1))
    made.add("a", 1, version(accelerators=2))
    made.settle()
    made.add("b", 1, version(accelerators=1))
    made.settle()
    assert made.status("b") is ComponentStatus.CREATING
    assert made.components["b"].waiting
    made.change("a", status=ComponentStatus.DELETING)
    made.settle()
    assert made.status("b") is IN_SERVICE
    assert made.components["b"].waiting == ""
    assert "a" not in made.components


def test_waiting_ends_as_a_failure_after_the_provisioning_time() -> None:
    made = world(deployment(1, 1))
    made.add("a", 1, version(accelerators=2))
    made.settle()
    made.add("b", 1, version(accelerators=1))
    made.settle(3)
    made.now_s += made.settings.provision_timeout_s
    made.settle(3)
    assert made.status("b") is FAILED
    assert "not enough hardware" in made.components["b"].failure_reason
    assert made.status("a") is IN_SERVICE


def test_idle_instances_are_released_down_to_the_minimum() -> None:
    made = world(deployment(0, 3))
    made.add("a", 4, version(accelerators=1))
    made.settle()
    assert len(made.running()) == 2
    made.scale("a", 0)
    made.settle(20)
    assert made.instances == {}
    made.scale("a", 1)
    made.settle()
    assert made.status("a") is IN_SERVICE
    assert len(made.running()) == 1


def test_without_managed_scaling_instances_stay_as_they_are() -> None:
    made = world(deployment(managed=False, initial=1))
    made.add("a", 3, version(accelerators=1))
    made.settle(15)
    assert len(made.running()) == 1
    assert "ManagedInstanceScaling is not enabled" in made.components["a"].waiting


def test_copies_of_a_lost_instance_come_back_elsewhere() -> None:
    made = world(deployment(2, 3, initial=2))
    made.add("a", 2)
    made.settle()
    victim = made.of("a")[0].instance_id
    made.lost = {victim: "its node is gone"}
    made.settle()
    assert victim not in made.instances
    assert len(made.of("a")) == 2
    assert made.status("a") is IN_SERVICE


def test_a_version_that_cannot_be_resolved_fails_the_component() -> None:
    made = world()
    first = version()
    made.resolve_failures = {first.version_id: "no such image"}
    made.add("a", 1, first)
    made.settle()
    assert made.status("a") is FAILED
    assert made.components["a"].failure_reason == "no such image"


def test_a_container_that_never_gets_healthy_fails_its_component_only() -> None:
    made = world()
    made.add("good")
    made.add("bad")
    made.broken = {"bad": {"state": "failed", "failure": "health_timeout", "message": "503"}}
    made.settle()
    assert made.status("good") is IN_SERVICE
    assert made.status("bad") is FAILED
    assert "did not pass the ping health check" in made.components["bad"].failure_reason
    assert made.of("bad") == []
    assert len(made.of("good")) == 1


def test_restarts_are_told_of_while_a_component_is_created() -> None:
    made = world()
    made.add("bad")
    made.broken = {"bad": {"state": "backoff", "restarts": 2, "message": "exited with status 3"}}
    made.settle()
    assert made.status("bad") is ComponentStatus.CREATING
    assert "2 restarts): exited with status 3" in made.components["bad"].waiting


def test_a_rolling_update_keeps_capacity() -> None:
    made = world()
    made.add("a", 3)
    made.settle()
    policy = UpdatePolicy(None, RollingPolicy(CapacitySize("COPY_COUNT", 2), 3.0))
    made.fewest.clear()
    made.change("a", status=ComponentStatus.UPDATING, pending=version("repo/b:1", policy=policy))
    made.settle(4)
    assert {c.manifest_digest for c in made.of("a")} == {"sha256:repo/a:1", "sha256:repo/b:1"}
    made.settle(20)
    assert made.status("a") is IN_SERVICE
    assert {c.manifest_digest for c in made.copies.values()} == {"sha256:repo/b:1"}
    assert made.fewest["a"] >= 3
    assert made.components["a"].retired == ()


def test_a_bad_update_is_rolled_back_with_capacity_kept() -> None:
    made = world()
    made.add("a", 2)
    made.settle()
    good = made.components["a"].current
    bad = version("repo/b:1")
    made.fewest.clear()
    made.change("a", status=ComponentStatus.UPDATING, pending=bad)
    made.settle(1)
    made.plan()
    for copy in made.of("a"):
        if copy.deployment_id == bad.version_id:
            made.copies[copy.copy_id] = replace(
                copy, state="failed", failure="container_exited", message="status 1"
            )
    made.settle()
    assert made.status("a") is IN_SERVICE
    assert made.components["a"].current.version_id == good.version_id
    assert "did not pass the ping health check" in made.components["a"].failure_reason
    assert len(made.of("a")) == 2
    assert made.fewest["a"] >= 2


def test_an_alarm_rolls_an_update_back() -> None:
    made = world()
    made.add("a", 2)
    made.settle()
    rolling = RollingPolicy(CapacitySize("COPY_COUNT", 1), 30.0)
    made.change(
        "a",
        status=ComponentStatus.UPDATING,
        pending=version("repo/b:1", policy=UpdatePolicy(None, rolling, ("errors",))),
    )
    made.settle(5)
    made.alarms = frozenset({"errors"})
    made.settle()
    assert made.status("a") is IN_SERVICE
    assert "alarm errors" in made.components["a"].failure_reason
    assert {c.manifest_digest for c in made.copies.values()} == {"sha256:repo/a:1"}


def test_consolidation_moves_copies_before_it_drains_and_honours_its_cooldown() -> None:
    made = world(deployment(1, 3, strategy="CONSOLIDATION"))
    made.add("a", 2, version(accelerators=1))
    made.add("b", 2, version(accelerators=1))
    made.settle(15)
    assert len(made.running()) == 2
    made.scale("a", 1)
    made.scale("b", 1)
    made.settle(15)
    made.fewest.clear()
    made.settle(20)
    made.now_s += 300
    made.settle(20)
    assert len(made.running()) == 1
    assert len(made.instances) == 1
    assert made.fewest == {"a": 1, "b": 1}
    assert made.status("a") is made.status("b") is IN_SERVICE


def test_another_instance_type_takes_the_copies_over() -> None:
    made = world()
    made.add("a")
    made.settle()
    made.fewest.clear()
    made.endpoint = replace(
        made.endpoint, status=EndpointStatus.UPDATING, pending=deployment(kind="ml.duo2")
    )
    made.settle(15)
    assert made.endpoint.status is EndpointStatus.IN_SERVICE
    assert [i.instance_type for i in made.instances.values()] == ["ml.duo2"]
    assert made.fewest["a"] >= 1
    assert made.status("a") is IN_SERVICE


def test_copies_of_an_instance_that_cannot_be_had_go_where_room_gets_free() -> None:
    made = world(deployment(1, 2), capacity=1)
    made.add("a", 2, version(accelerators=1))
    made.add("b", 1, version(accelerators=1))
    made.settle()
    assert made.status("b") is ComponentStatus.CREATING
    assert "1 of 1 instances are in use" in made.components["b"].waiting
    made.scale("a", 1)
    made.settle()
    assert made.status("b") is IN_SERVICE


def test_deletion_in_every_state_leaves_nothing() -> None:
    made = world(deployment(1, 1))
    made.add("serving", 1, version(accelerators=1))
    made.settle()
    made.add("waiting", 1, version(accelerators=2))
    made.add("failed")
    made.broken = {"failed": {"state": "failed", "failure": "health_timeout"}}
    made.settle()
    assert made.status("failed") is FAILED
    made.change("failed", status=ComponentStatus.DELETING)
    made.settle()
    assert "failed" not in made.components
    made.change("serving", status=ComponentStatus.UPDATING, pending=version("repo/b:1"))
    made.settle(1)
    made.endpoint = replace(made.endpoint, status=EndpointStatus.DELETING)
    made.settle(15)
    assert made.gone
    assert made.components == {}
    assert made.copies == {}
    assert made.instances == {}


def test_draining_copies_finish_their_requests() -> None:
    made = world()
    made.add("a", 2)
    made.settle()
    made.in_flight = {copy.copy_id: 1 for copy in made.of("a")}
    made.scale("a", 1)
    made.settle(5)
    draining = [c for c in made.copies.values() if c.draining_s is not None]
    assert len(draining) == 1
    made.in_flight = {}
    made.settle(5)
    assert len(made.copies) == 1
    assert all(i.state is InstanceState.RUNNING for i in made.instances.values())
