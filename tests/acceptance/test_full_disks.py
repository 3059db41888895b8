"""Disks that are full: a file system of its own for the nodes, another one for the caches."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tests.acceptance.images import server_image_with
from tests.acceptance.serving import CPU, GPU, Server, running_server, wait_until
from tests.fixtures.images import push_image
from tests.fixtures.mounting import detach
from tests.fixtures.registry import Registry

MIB = 1 << 20


@dataclass(frozen=True)
class Disks:
    nodes: Path
    caches: Path


def make_disk(image: Path, target: Path, size_bytes: int) -> None:
    with image.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-F", image], check=True)
    target.mkdir(parents=True)
    subprocess.run(["mount", "-o", "loop", image, target], check=True)
    (target / "lost+found").rmdir()


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disks]:
    folder = tmp_path_factory.mktemp("disks")
    made = Disks(folder / "nodes", folder / "caches")
    try:
        make_disk(folder / "nodes.img", made.nodes, 220 * MIB)
        make_disk(folder / "caches.img", made.caches, 80 * MIB)
        yield made
    finally:
        for target in (made.nodes, made.caches):
            if target.is_mount():
                detach(target)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, disks: Disks) -> Iterator[Server]:
    def lay_out(server: Server) -> None:
        for name, disk in (("instances", disks.nodes), ("caches", disks.caches)):
            (server.folder / "state").mkdir(exist_ok=True)
            (server.folder / "state" / name).symlink_to(disk)

    with running_server(tmp_path_factory.mktemp("zp"), lay_out) as server:
        yield server


@pytest.fixture
def server(shared: Server, disks: Disks) -> Iterator[Server]:
    """Without any endpoint and with empty disks, whatever the test before has done."""
    yield shared
    for disk in (disks.nodes, disks.caches):
        (disk / "filler").unlink(missing_ok=True)
    shared.clear()


def fill(disk: Path, leave_bytes: int) -> Path:
    """A file that takes all but so much of the disk."""
    (disk / "filler").unlink(missing_ok=True)
    status = os.statvfs(disk)
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - leave_bytes)
    return filler


def test_a_disk_that_is_full_while_pulling_fails_the_endpoint_with_the_arithmetic(
    server: Server, disks: Disks, registry: Registry
) -> None:
    image = server_image_with("wide", size_bytes=30 * MIB)
    push_image(registry.address, "wide", "1", image)
    filler = fill(disks.nodes, leave_bytes=50 * MIB)
    server.deploy(
        "wide", f"{registry.address}/wide:1", CPU, ContainerStartupHealthCheckTimeoutInSeconds=60
    )
    reason = server.wait_failed("wide", 150)
    assert "disk" in reason or "room" in reason
    assert "bytes" in reason and "free" in reason
    filler.unlink()
    server.delete_all("wide")
    server.deploy("wide", f"{registry.address}/wide:1", CPU)
    server.wait_served("wide")
    assert server.show("wide", "environment")["MARK"] == "wide"


def test_a_disk_that_is_full_while_the_cache_is_built_holds_up_nobody(
    server: Server, disks: Disks, registry: Registry
) -> None:
    filler = fill(disks.caches, leave_bytes=4 * MIB)
    server.deploy("tight", f"{registry.address}/server:1", GPU)
    server.wait_served("tight")

    def told() -> str:
        return str(server.endpoint("tight")["image_cache"]["message"])

    message = wait_until("the build is given up", told)
    assert "bytes" in message and "free" in message
    assert server.endpoint("tight")["image_cache"]["generation"] is None
    server.scale_and_wait("tight", 2)
    assert server.image_stage("tight")["path"] == "fallback"
    assert not list(disks.caches.rglob("*.erofs"))

    filler.unlink()
    server.delete_all("tight")
    server.deploy("tight", f"{registry.address}/server:1", GPU)
    server.wait_served("tight")
    server.wait_cached("tight")


def test_a_budget_that_is_too_small_is_told_with_the_arithmetic(
    tmp_path: Path, registry: Registry
) -> None:
    with running_server(tmp_path, image_cache={"budget_bytes": 1_000_000}) as server:
        server.deploy("thrifty", f"{registry.address}/server:1", GPU)
        server.wait_served("thrifty")
        message = wait_until(
            "the build is refused", lambda: server.endpoint("thrifty")["image_cache"]["message"]
        )
        assert "1000000" in message.replace(",", "").replace("_", "")
        assert "budget" in message
        server.scale_and_wait("thrifty", 2)
        assert server.image_stage("thrifty")["path"] == "fallback"


def test_on_a_full_disk_of_the_state_all_is_served_healed_and_deleted(
    tmp_path: Path, registry: Registry
) -> None:
    """The state alone is on the disk; the control plane dies and begins again meanwhile."""
    disk = tmp_path / "disk"
    make_disk(tmp_path / "state.img", disk, 400 * MIB)
    (tmp_path / "zp").mkdir()
    try:
        with running_server(tmp_path / "zp", lambda server: lay_apart(server, tmp_path)) as server:
            server.deploy("held", f"{registry.address}/server:1", CPU)
            server.wait_served("held")
            filler = fill(disk, leave_bytes=8 * MIB)
            eat_all(filler)
            assert server.answers("held")
            with pytest.raises(ClientError, match=r"disk of .* is full") as refused:
                server.make_config("more", f"{registry.address}/server:1")
            assert refused.value.response["Error"]["Code"] == "ResourceLimitExceeded"
            assert "is full" in server.cli("status")

            server.kill(server.child_pid("control_plane"))
            eat_all(filler)
            wait_until("it answers again", server.answers_api)
            assert server.sagemaker.list_endpoints()["Endpoints"][0]["EndpointName"] == "held"
            (instance,) = server.instances("held")
            agent = server.daemon_pid(instance, "agent")
            server.kill(agent)
            wait_until(
                "the agent is started again",
                lambda: server.daemon_pid(instance, "agent") not in (0, agent),
            )
            server.scale_and_wait("held", 2)
            assert server.answers("held")
            server.delete_endpoint("held")
            log = (server.folder / "log").read_text()
            assert log.count("process died") == 1
            assert "Traceback" not in log

            filler.unlink()
            server.deploy("more", f"{registry.address}/server:1", CPU)
            server.wait_served("more")
            assert "is full" not in server.cli("status")
    finally:
        if disk.is_mount():
            detach(disk)


def lay_apart(server: Server, folder: Path) -> None:
    """The state is on `disk`, instances and caches are on another one."""
    (server.folder / "state").symlink_to(folder / "disk")
    for name in ("instances", "caches"):
        (folder / name).mkdir()
        (server.folder / "state" / name).symlink_to(folder / name)


def eat_all(filler: Path) -> None:
    """What a process takes that writes as long as it can."""
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
