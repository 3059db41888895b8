"""The end and the return of `zeropull serve`: detached, stopped, crashed, and after a reboot."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.acceptance.serving import GPU, Server, running_server, wait_until
from tests.fixtures.local_fleet import is_running, runc_folder
from tests.fixtures.mounting import detach, mounts_under
from tests.fixtures.registry import Registry
from zeropull.linux.network_namespaces import delete_netns, list_netns
from zeropull.providers.local import cgroups, network
from zeropull.providers.local.network import subnet_of_link


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[Server]:
    """A server with the endpoint `kept`, whose image is in its cache."""
    with running_server(tmp_path_factory.mktemp("zp")) as server:
        server.deploy("kept", f"{registry.address}/server:1", GPU)
        server.wait_served("kept")
        server.wait_cached("kept")
        yield server


@pytest.fixture
def server(kept: Server) -> Server:
    """Running and serving, whatever the test before has done."""
    assert kept.process is not None
    if kept.process.poll() is not None:
        kept.start()
    come_back(kept)
    return kept


def come_back(server: Server, instances: int = 1) -> None:
    server.wait_served("kept", instances)
    wait_until("it answers", lambda: server.answers("kept"))


def kill_everything(server: Server) -> None:
    while pids := {pid for pid in server.everything() if is_running(pid)}:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert server.process is not None
    server.process.wait(10)


def forget_like_a_reboot(server: Server) -> None:
    """Take away what only lives in the kernel and in /run. The disk stays as it is."""
    names = server.names
    for folder in (names.run_dir, names.state_dir):
        for target in mounts_under(folder):
            detach(Path(target))
    for path in names.instances_dir.glob("i-*"):
        shutil.rmtree(runc_folder(path.name), ignore_errors=True)
    for namespace in list_netns(names.netns_prefix):
        delete_netns(namespace)
    for link in network.list_links(names.link_prefix):
        network.delete_link(link)
    for family in ("ip", "ip6"):
        subprocess.run(["nft", "delete", "table", family, names.nft_table], check=True)
    hierarchies = cgroups.find_hierarchies()
    cgroups.remove(hierarchies, names.cgroup)
    shutil.rmtree(names.run_dir)
    left = server.left_behind()
    assert set(left) == {"folders"}, left


def test_sigterm_detaches_and_the_next_start_adopts_every_container(server: Server) -> None:
    instances, containers = server.instances("kept"), server.container_pids("kept")
    assert len(containers) == 1
    server.end(signal.SIGTERM)
    assert all(is_running(pid) for pid in containers)
    server.start()
    come_back(server)
    assert server.instances("kept") == instances
    assert server.container_pids("kept") == containers
    assert server.endpoint("kept")["instances"][0]["copies"][0]["restarts"] == 0


def test_a_killed_supervisor_leaves_the_containers_to_the_next_start(server: Server) -> None:
    containers = server.container_pids("kept")
    control_plane, gateway = server.child_pid("control_plane"), server.child_pid("gateway")
    assert server.process is not None
    server.process.kill()
    server.process.wait(10)
    wait_until("the control plane has detached", lambda: not is_running(control_plane))
    assert is_running(gateway)
    assert server.answers("kept")
    server.start()
    come_back(server)
    assert server.container_pids("kept") == containers


def test_endpoints_come_back_after_everything_was_killed(
    server: Server, registry: Registry
) -> None:
    containers = server.container_pids("kept")
    kill_everything(server)
    registry.reset()
    server.start()
    come_back(server)
    assert server.container_pids("kept").isdisjoint(containers)
    assert registry.counts.requests == [], "what the node has, and its cache, are enough"


def test_a_container_moves_with_its_node_to_another_network(server: Server) -> None:
    (instance,) = server.instances("kept")
    containers = server.container_pids("kept")
    link = server.names.instance(instance).link
    before = subnet_of_link(link)
    assert before is not None
    with taken(f"{before.gateway}/24"):
        network.delete_link(link)
        wait_until("its link is back", lambda: subnet_of_link(link) not in (None, before))
        come_back(server)
    assert server.container_pids("kept").isdisjoint(containers)
    assert server.instances("kept") == [instance]


@contextlib.contextmanager
def taken(address: str) -> Iterator[None]:
    """Somebody else's link has the address meanwhile."""
    subprocess.run(["ip", "link", "add", "zptaken0", "type", "bridge"], check=True)
    try:
        subprocess.run(["ip", "address", "add", address, "dev", "zptaken0"], check=True)
        subprocess.run(["ip", "link", "set", "zptaken0", "up"], check=True)
        yield
    finally:
        subprocess.run(["ip", "link", "delete", "zptaken0"], check=True)


@pytest.mark.parametrize("ground", ["the same network", "its network is somebody else's now"])
def test_endpoints_come_back_after_a_reboot(
    server: Server, registry: Registry, ground: str
) -> None:
    (instance,) = server.instances("kept")
    before = subnet_of_link(server.names.instance(instance).link)
    assert before is not None
    kill_everything(server)
    forget_like_a_reboot(server)
    registry.reset()
    others = taken(f"{before.gateway}/24") if ground != "the same network" else nullcontext()
    with others:
        server.start()
        come_back(server)
    # Another fleet of this machine may have taken it in the first case, too.
    if ground != "the same network":
        assert subnet_of_link(server.names.instance(instance).link) != before
    assert len(server.instances("kept")) == 1
    assert registry.counts.requests == [], "what the node has, and its cache, are enough"
    assert {path.name for path in server.names.instances_dir.glob("i-*")} == set(
        server.instances("kept")
    )


@pytest.mark.parametrize(
    "way",
    [
        "ctrl-c",
        "ctrl-c without a control plane",
        "zeropull stop",
        "zeropull stop after a crash",
    ],
)
def test_it_leaves_nothing_on_the_machine_and_comes_back_from_its_cache(
    server: Server, registry: Registry, way: str
) -> None:
    assert set(server.left_behind()) >= {"folders", "mounts", "netns", "links", "cgroups", "rules"}
    if way == "ctrl-c":
        server.end(signal.SIGINT)
    elif way == "ctrl-c without a control plane":
        server.kill(server.child_pid("control_plane"))
        server.end(signal.SIGINT)
    elif way == "zeropull stop":
        server.cli("stop")
    else:
        kill_everything(server)
        server.cli("stop")
    assert server.process is not None
    server.process.wait(10)
    assert server.left_behind() == {}
    assert server.everything() == set()
    assert not server.names.run_dir.exists()
    registry.switch_off()
    try:
        server.start()
        come_back(server)
    finally:
        registry.switch_on()
    stage = server.image_stage("kept")
    assert stage["layers_from_cache"] == stage["layers_total"]


def test_one_instance_that_cannot_be_removed_keeps_stop_from_no_other(server: Server) -> None:
    server.scale_and_wait("kept", 2)
    bad = min(server.instances("kept"))
    undeletable = server.folder / "state/instances" / bad / "swap"
    undeletable.write_bytes(bytes(1 << 20))
    undeletable.chmod(0o600)
    subprocess.run(["mkswap", str(undeletable)], check=True, capture_output=True)
    # Nobody may remove a file that the kernel swaps to.
    subprocess.run(["swapon", str(undeletable)], check=True)
    try:
        kill_everything(server)
        with pytest.raises(subprocess.CalledProcessError) as refused:
            server.cli("stop")
        assert "not everything could be ended" in refused.value.stderr
        assert "Traceback" not in refused.value.stderr
        assert not server.left_behind().keys() & {"netns", "links", "mounts", "processes"}
        assert server.left_behind()["folders"] == [str(undeletable.parent)]
    finally:
        subprocess.run(["swapoff", str(undeletable)], check=True)
    server.cli("stop")
    assert server.left_behind() == {}
    assert server.process is not None
    server.process.wait(10)
    server.start()
    come_back(server, 2)
