"""A pause or a reboot is no death, and what cannot be had is told: nothing healthy is replaced."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.acceptance.serving import Load, Server, running_server, wait_until
from tests.fixtures.registry import Registry
from zeropull.resources.machine import Machine
from zeropull.statestore import Store

LOST_S = 8.0  # a node that has not reported for so long is given up


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[Server]:
    """One endpoint on two instances, a fleet of three, and little patience with silence."""
    with running_server(
        tmp_path_factory.mktemp("zp"),
        fleet={"max_instances": 3},
        endpoints={"node_lost_s": LOST_S},
    ) as server:
        server.deploy("steady", f"{registry.address}/server:1", InitialInstanceCount=2)
        server.wait_served("steady", 2)
        yield server


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """They do nothing for twice as long as it takes to give a node up."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def wait_s(seconds: float) -> None:
    until = time.monotonic() + seconds
    wait_until("the pause is over", lambda: time.monotonic() >= until)


def test_a_control_plane_that_was_stopped_replaces_no_instance(server: Server) -> None:
    before = server.instances("steady")
    with Load(server, "steady").running() as load:
        with stopped(server.child_pid("control_plane")):
            wait_s(2 * LOST_S)
        wait_s(2.0)
        load.wait_for_more()
    assert load.failed == []
    assert server.instances("steady") == before


def test_agents_that_were_stopped_are_not_dead_while_their_containers_answer(
    server: Server,
) -> None:
    before = server.instances("steady")
    agents = [server.daemon_pid(instance_id, "agent") for instance_id in before]
    with Load(server, "steady").running() as load:
        with stopped(*agents):
            wait_s(2 * LOST_S)
            assert server.instances("steady") == before
        load.wait_for_more()
    assert load.failed == []
    assert server.instances("steady") == before


def test_a_scale_out_beyond_the_fleet_says_why_it_waits_and_can_be_taken_back(
    server: Server,
) -> None:
    server.scale("steady", 5)

    def reason() -> str:
        described = server.sagemaker.describe_endpoint(EndpointName="steady")
        return str(described.get("FailureReason", ""))

    full = "3 of at most 3 instances (fleet.max_instances)"
    wait_until("the lack is told", lambda: full in reason())
    server.scale("steady", 2)
    server.wait_served("steady", 2)
    assert reason() == ""


def test_after_a_reboot_nothing_is_in_service_before_it_has_answered(server: Server) -> None:
    server.end(signal.SIGTERM)
    with Store.open(server.names.state_dir / "zeropull.db") as store:
        known = store.require(Machine, Machine.key).document
        store.put(replace(known, boot_id="of another boot"))
    server.start()
    seen = server.sagemaker.describe_endpoint(EndpointName="steady")
    instances = server.endpoint("steady")["instances"]
    assert seen["EndpointStatus"] in ("OutOfService", "InService")
    if seen["EndpointStatus"] == "InService":
        assert any(copy["state"] == "healthy" for i in instances for copy in i["copies"])
    server.wait_served("steady", 2)


def test_an_endpoint_that_waits_can_be_deleted(server: Server) -> None:
    server.scale("steady", 5)
    wait_until(
        "it waits",
        lambda: server.sagemaker.describe_endpoint(EndpointName="steady").get("FailureReason"),
    )
    server.delete_endpoint("steady")
