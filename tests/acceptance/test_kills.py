"""SIGKILL of every process, during a launch and while it serves: nothing is lost or left behind.

Requests go on all the time. Those that fail are only allowed where the process that answers them
is the one that was killed: a shim takes its container along, the gateway its connections.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.serving import GPU, Load, Server, running_server, wait_until
from tests.fixtures.registry import Registry

NODE_DAEMONS = ("agent", "snapshotter", "containerd")
OWN_DAEMONS = ("control_plane", "gateway")


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[Server]:
    """With one endpoint that serves from the first test to the last."""
    with running_server(tmp_path_factory.mktemp("zp")) as server:
        server.deploy("steady", f"{registry.address}/server:1", GPU)
        server.wait_served("steady")
        server.wait_cached("steady")
        yield server


@pytest.fixture
def server(steady: Server) -> Iterator[Server]:
    """One instance serves, and no other endpoint is there, whatever the test before has done."""
    yield steady
    wait_until("the API answers", lambda: steady.answers_api())
    steady.clear("steady")
    if len(steady.instances("steady")) != 1:
        steady.wait_served("steady", steady.wanted("steady"))
        steady.scale_and_wait("steady", 1)
    wait_until("one instance is left", lambda: len(steady.instances("steady")) == 1)
    wait_until("it answers", lambda: steady.answers("steady"))


@pytest.mark.parametrize("role", NODE_DAEMONS)
def test_a_nodes_daemon_killed_while_serving_is_replaced_and_no_request_fails(
    server: Server, role: str
) -> None:
    [instance_id] = server.instances("steady")
    containers = server.container_pids("steady")
    assert len(containers) == 1
    pid = server.daemon_pid(instance_id, role)
    with Load(server, "steady").running() as load:
        server.kill(pid)
        wait_until(f"another {role}", lambda: server.daemon_pid(instance_id, role) not in (0, pid))
        load.wait_for_more()
    assert load.failed == []
    assert server.container_pids("steady") == containers
    assert server.instances("steady") == [instance_id]


@pytest.mark.parametrize("daemon", OWN_DAEMONS)
def test_a_process_of_the_server_killed_while_serving_is_replaced(
    server: Server, daemon: str
) -> None:
    containers = server.container_pids("steady")
    pid = server.child_pid(daemon)
    with Load(server, "steady").running() as load:
        server.kill(pid)
        load.wait_for_more()
    assert all(is_cut_off(failure) for failure in load.failed)
    assert daemon == "gateway" or load.failed == []
    server.wait_served("steady")
    assert server.container_pids("steady") == containers


def test_a_shim_killed_while_serving_has_its_container_replaced(server: Server) -> None:
    [instance_id] = server.instances("steady")
    [(shim, [container])] = server.shims(instance_id).items()
    server.kill(shim)

    def replaced() -> bool:
        running = server.container_pids("steady")
        return len(running) == 1 and container not in running and server.answers("steady")

    wait_until("another container answers", replaced)
    assert server.instances("steady") == [instance_id], "the instance itself was fine"
    wait_until("the old process is gone", lambda: container not in server.everything())


@pytest.mark.parametrize("victim", [*NODE_DAEMONS, *OWN_DAEMONS, "shim"])
def test_whatever_is_killed_during_a_launch_the_launch_completes(
    server: Server, victim: str
) -> None:
    [before] = server.instances("steady")

    def launched() -> list[str]:
        return [path.name for path in server.names.run_dir.glob("i-*") if path.name != before]

    def victims() -> list[int]:
        """Processes to kill, once the launch has brought them."""
        if victim in OWN_DAEMONS:
            return [server.child_pid(victim)]
        if victim == "shim":
            return [pid for one in launched() for pid in server.shims(one)]
        return [pid for one in launched() if (pid := server.daemon_pid(one, victim))]

    def has_another_shim(killed: int) -> bool:
        shims = [pair for one in launched() for pair in server.shims(one).items()]
        return any(containers for pid, containers in shims if pid != killed)

    with Load(server, "steady").running() as load:
        server.scale("steady", 2)
        # containerd's helper that starts a shim looks like one: there may be two at that moment.
        killed = wait_until(f"there is a {victim} to kill", victims)[0]
        server.kill(killed)
        if victim == "shim":
            # Before that, the container may still count as one that serves, and the other instance
            # as the one that can go.
            wait_until("another container is started", lambda: has_another_shim(killed))
        server.wait_served("steady", 2, limit_s=120)
        load.wait_for_more()
        server.scale_and_wait("steady", 1)
        wait_until("one instance is left", lambda: len(server.instances("steady")) == 1)
        load.wait_for_more()
    if victim == "shim":
        # It takes the new container along, which may serve already: what is in flight there fails.
        assert all(len(of_one) <= 1 for of_one in load.failures), load.failures
    else:
        assert all(is_cut_off(failure) for failure in load.failed)
        assert victim == "gateway" or load.failed == []
    [left] = server.instances("steady")
    wait_until("nothing else is left", lambda: folders(server) == {left})
    assert not [
        thing
        for things in server.left_behind().values()
        for thing in things
        if "i-" in thing and left not in thing
    ]


def is_cut_off(failure: str) -> bool:
    """No connection, or one that ended: never an answer that says no."""
    return any(
        words in failure
        for words in ("EndpointConnectionError", "ConnectionClosedError", "ResponseStreamingError")
    )


def folders(server: Server) -> set[str]:
    return {path.name for path in server.names.instances_dir.glob("i-*")}


def test_a_first_deployment_completes_whatever_pulls_it_is_killed(
    server: Server, registry: Registry
) -> None:
    """The agent with the pull in it, and the control plane with the build of the cache in it."""
    server.deploy("pulled", f"{registry.address}/server:1", GPU)

    def pulling() -> int | None:
        instances = server.instances("pulled")
        stores = [server.names.instances_dir / i / "layers" for i in instances]
        if not any(store.is_dir() and any(store.iterdir()) for store in stores):
            return None
        return server.daemon_pid(instances[0], "agent")

    server.kill(wait_until("it pulls", pulling))
    server.kill(server.child_pid("control_plane"))
    server.wait_served("pulled", limit_s=120)
    assert server.invoke("pulled") == b"hello"
    server.wait_cached("pulled")
    [instance_id] = server.instances("pulled")
    left = list((server.names.instances_dir / instance_id / "layers").glob(".tmp-*"))
    assert left == []


def test_a_deletion_goes_on_after_the_control_plane_was_killed_in_it(
    server: Server, registry: Registry
) -> None:
    server.deploy("doomed", f"{registry.address}/server:1", GPU)
    server.wait_served("doomed")
    cache = server.wait_cached("doomed").parents[1]
    [instance_id] = server.instances("doomed")
    server.sagemaker.delete_endpoint(EndpointName="doomed")
    server.kill(server.child_pid("control_plane"))
    server.wait_deleted("doomed")
    wait_until("its cache is gone", lambda: not cache.exists())
    assert instance_id not in folders(server)
    assert instance_id not in str(server.left_behind())
    assert server.answers("steady")
