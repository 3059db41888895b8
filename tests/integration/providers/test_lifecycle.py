"""Launch, adoption, repair and end of instances, with real namespaces, cgroups and containerd."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.fixtures.local_fleet import (
    SHAPE,
    Fleet,
    is_running,
    make_provider,
    request,
    run_command,
    runc_folder,
    running_fleet,
)
from zeropull.errors import Conflict, NoCapacity, NotFound, Unavailable
from zeropull.linux.mounts import bind, mounts_below, unmount
from zeropull.linux.network_namespaces import create_netns, delete_netns, in_netns
from zeropull.providers.local.cgroups import find_hierarchies, kill_all, processes_of
from zeropull.providers.local.names import SHIM_SOCKETS_DIR, InstanceNames
from zeropull.providers.local.processes import daemon_pid, unix_sockets_in_netns
from zeropull.providers.node_file import read_node_config
from zeropull.providers.protocol import MachineShape, Volume
from zeropull.resources.settings import FleetSettings

ROLES = ("containerd", "snapshotter", "agent")


async def test_nothing_is_left_of_an_instance_after_terminate(fleet: Fleet) -> None:
    launched = await fleet.provider.launch(request())
    assert launched.running
    assert launched.labels == {"endpoint": "e"}
    present = await fleet.left_behind()
    assert {"folders", "netns", "links", "cgroups", "processes", "rules"} <= present.keys()

    await fleet.provider.terminate(launched.instance_id)

    assert await fleet.left_behind() == {}
    assert await fleet.provider.list_instances() == []
    await fleet.provider.terminate(launched.instance_id)


async def test_a_running_container_goes_with_its_instance(fleet: Fleet, tmp_path: Path) -> None:
    launched = await fleet.provider.launch(request())
    names = fleet.names.instance(launched.instance_id)
    config = read_node_config(names.node_file)
    root = tmp_path / "root"
    for folder in ("usr", "proc", "dev", "sys"):
        (root / folder).mkdir(parents=True)
    for link in ("bin", "lib", "lib64", "sbin"):
        (root / link).symlink_to(f"usr/{link}")
    bind(Path("/usr"), root / "usr")
    try:
        await run_command(
                "ctr", "-a", str(config.containerd_socket), "-n", config.containerd_namespace,
                "run", "-d", "--rootfs", "--cgroup", f"{config.cgroup_parent}/c-1", str(root),
                "c-1", "/usr/bin/sleep", "3600",
        )  # fmt: skip
        groups = processes_of(find_hierarchies(), f"{names.cgroup}/copies")
        assert len(groups) == 1
        assert runc_folder(launched.instance_id).exists()
        sockets = unix_sockets_in_netns(names.netns, SHIM_SOCKETS_DIR)
        assert sockets

        await fleet.provider.terminate(launched.instance_id)

        assert await fleet.left_behind() == {}
        assert not runc_folder(launched.instance_id).exists()
        assert not any(socket.exists() for socket in sockets)
        assert not is_running(groups.pop())
    finally:
        await run_command("umount", root / "usr")


@pytest.mark.parametrize("role", ROLES)
async def test_a_killed_daemon_is_started_again(fleet: Fleet, role: str) -> None:
    launched = await fleet.provider.launch(request())
    names = fleet.names.instance(launched.instance_id)
    before = {each: daemon_pid(names, each) for each in ROLES}
    assert await fleet.provider.heal(launched.instance_id) is False
    killed = before[role]
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    await asyncio.to_thread(os.waitid, os.P_PID, killed, os.WEXITED | os.WNOWAIT)

    assert await fleet.provider.heal(launched.instance_id) is True

    after = {each: daemon_pid(names, each) for each in ROLES}
    assert after[role] not in (None, before[role])
    assert {each: pid for each, pid in after.items() if each != role} == {
        each: pid for each, pid in before.items() if each != role
    }


async def test_a_second_provider_adopts_what_runs(fleet: Fleet) -> None:
    launched = await fleet.provider.launch(request())
    names = fleet.names.instance(launched.instance_id)
    pids = [daemon_pid(names, role) for role in ROLES]
    await fleet.provider.close()

    second = fleet.another_provider()
    assert await second.list_instances() == [launched]
    assert await second.launch(request(launched.instance_id)) == launched
    assert [daemon_pid(names, role) for role in ROLES] == pids

    await second.terminate(launched.instance_id)
    assert await fleet.left_behind() == {}


async def test_an_instance_comes_back_after_everything_but_its_disk_is_gone(fleet: Fleet) -> None:
    launched = await fleet.provider.launch(request())
    names = fleet.names.instance(launched.instance_id)
    (names.layers_dir / "kept").mkdir()
    kill_all(find_hierarchies(), names.cgroup)
    await run_command("ip", "link", "delete", names.link)
    await run_command("ip", "netns", "delete", names.netns)
    assert [found.running for found in await fleet.provider.list_instances()] == [False]

    assert await fleet.provider.heal(launched.instance_id) is True

    assert [found.running for found in await fleet.provider.list_instances()] == [True]
    assert (names.layers_dir / "kept").exists()


async def test_a_namespace_that_the_administrator_adds_is_in_nobodys_way(fleet: Fleet) -> None:
    """The first `ip netns add` on a machine mounts the directory over itself."""
    launched = await fleet.provider.launch(request())
    other = f"zptest-{os.urandom(4).hex()}"
    await run_command("ip", "netns", "add", other)
    try:
        await fleet.provider.terminate(launched.instance_id)
        assert await fleet.left_behind() == {}
    finally:
        await run_command("ip", "netns", "delete", other)


async def test_a_half_finished_launch_is_swept(fleet: Fleet) -> None:
    kept = await fleet.provider.launch(request())
    half = fleet.names.instance("i-0123456789abcdef0")
    create_netns(half.netns)
    folder = half.run_dir / "m" / "1"
    folder.mkdir(parents=True)
    bind(fleet.names.state_dir, folder)
    process = in_netns(half.netns, lambda: subprocess.Popen(["sleep", "3600"]))

    assert await fleet.provider.sweep({kept.instance_id}) == [half.instance_id]

    assert await asyncio.to_thread(process.wait, 10) == -signal.SIGKILL
    assert not half.run_dir.exists()
    assert fleet.names.instances_dir.exists()
    assert [found.instance_id for found in await fleet.provider.list_instances()] == [
        kept.instance_id
    ]


async def test_namespaces_of_copies_go_with_their_instance(fleet: Fleet) -> None:
    launched = await fleet.provider.launch(request())
    config = read_node_config(fleet.names.instance(launched.instance_id).node_file)
    copy, half_made = f"{config.netns}-{os.urandom(6).hex()}", f"{config.netns}-{'0' * 12}"
    create_netns(copy)
    (Path("/run/netns") / half_made).touch()
    lingerer = in_netns(copy, lambda: subprocess.Popen(["sleep", "3600"]))
    try:
        await fleet.provider.terminate(launched.instance_id)
        assert await asyncio.to_thread(lingerer.wait, 10) == -signal.SIGKILL
        assert await fleet.left_behind() == {}
    finally:
        delete_netns(copy)


async def test_a_namespace_that_is_left_alone_is_found_by_sweep(fleet: Fleet) -> None:
    launched = await fleet.provider.launch(request())
    names = fleet.names.instance(launched.instance_id)
    await fleet.provider.terminate(launched.instance_id)
    create_netns(f"{names.copy_netns_prefix}{'1' * 12}")
    assert await fleet.provider.sweep(()) == [launched.instance_id]
    assert await fleet.left_behind() == {}


async def test_an_agent_that_ends_at_once_is_reported_with_its_log(fleet: Fleet) -> None:
    broken = make_provider(
        fleet.settings, fleet.names, agent=("sh", "-c", "echo no such module >&2; exit 3")
    )
    with pytest.raises(Unavailable, match="no such module"):
        await broken.launch(request())
    await broken.sweep(())
    assert await fleet.left_behind() == {}


async def test_limits_are_the_smaller_of_type_and_host(fleet: Fleet) -> None:
    huge = MachineShape("ml.huge", vcpus=4096, memory_bytes=1 << 60)
    small, large = [
        read_node_config(fleet.names.instance(found.instance_id).node_file)
        for found in [
            await fleet.provider.launch(request(shape=SHAPE)),
            await fleet.provider.launch(request(shape=huge)),
        ]
    ]
    assert (small.vcpus, small.memory_bytes) == (1, 1 << 30)
    assert large.vcpus == os.cpu_count()
    assert large.memory_bytes < 1 << 50


async def test_a_volume_is_read_only_and_stays_as_long_as_it_is_used(
    fleet: Fleet, tmp_path: Path
) -> None:
    generation = tmp_path / "generations" / "7"
    generation.mkdir(parents=True)
    (generation / "generation.json").write_text("{}")
    volume = Volume(7, generation, "sha256:0")
    launched = await fleet.provider.launch(request(volumes=(volume,)))
    path = Path(launched.volumes[7])
    assert (path / "generation.json").read_text() == "{}"
    with pytest.raises(OSError, match="Read-only"):
        (path / "new").touch()
    with (path / "generation.json").open(), pytest.raises(Conflict):
        await fleet.provider.detach(launched.instance_id, 7)
    await fleet.provider.detach(launched.instance_id, 7)
    await fleet.provider.detach(launched.instance_id, 7)
    assert await fleet.provider.attach(launched.instance_id, volume) == str(path)
    await fleet.provider.terminate(launched.instance_id)
    assert (generation / "generation.json").exists()


async def test_a_detached_generation_is_gone_and_stays_away(fleet: Fleet, tmp_path: Path) -> None:
    volumes = []
    for number in (7, 8):
        generation = tmp_path / "generations" / str(number)
        (generation / "layers" / "abc").mkdir(parents=True)
        (generation / "layers" / "abc" / "data.erofs").write_bytes(b"layer")
        volumes.append(Volume(number, generation, "sha256:0"))
    launched = await fleet.provider.launch(request(volumes=tuple(volumes)))
    names = fleet.names.instance(launched.instance_id)
    target = names.volumes_dir / "7"
    # A layer that is still mounted from the generation keeps it, as a running copy does.
    layer = tmp_path / "mounted-layer"
    layer.touch()
    bind(target / "layers" / "abc" / "data.erofs", layer)
    inside = target / "layers" / "abc"
    bind(inside, inside)
    with (inside / "data.erofs").open("rb"), pytest.raises(Conflict, match="still in use"):
        await fleet.provider.detach(launched.instance_id, 7)
    unmount(layer)

    await fleet.provider.detach(launched.instance_id, 7)

    assert not target.exists()
    assert mounts_below(target) == []
    (listed,) = await fleet.another_provider().list_instances()
    assert listed.volumes.keys() == {8}
    await kill_agent(names)
    assert await fleet.provider.heal(launched.instance_id)
    (healed,) = await fleet.provider.list_instances()
    assert healed.volumes.keys() == {8}, "a repair does not attach it again"
    assert (tmp_path / "generations/7/layers/abc/data.erofs").read_bytes() == b"layer"
    await fleet.provider.terminate(launched.instance_id)
    assert await fleet.left_behind() == {}


async def kill_agent(names: InstanceNames) -> None:
    pid = daemon_pid(names, "agent") or 0
    os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WEXITED | os.WNOWAIT)


async def test_a_layer_is_collected_by_hard_links(fleet: Fleet, tmp_path: Path) -> None:
    launched = await fleet.provider.launch(request())
    layer = fleet.names.instance(launched.instance_id).layers_dir / "abc"
    layer.mkdir()
    (layer / "meta.erofs").write_bytes(b"m")
    await fleet.provider.collect_layer(launched.instance_id, "sha256:abc", tmp_path / "into")
    assert (tmp_path / "into" / "meta.erofs").samefile(layer / "meta.erofs")
    with pytest.raises(NotFound):
        await fleet.provider.collect_layer(launched.instance_id, "sha256:d", tmp_path / "other")


async def test_missing_accelerators_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    cdi = tmp_path / "cdi"
    cdi.mkdir()
    (cdi / "gpu.json").write_text(
        '{"cdiVersion": "0.6.0", "kind": "nvidia.com/gpu", "devices": [{"name": "0", '
        '"containerEdits": {"deviceNodes": [{"path": "/dev/null"}]}}]}'
    )
    gpu = MachineShape("ml.g5.xlarge", 1, 1 << 30, 1, "nvidia.com/gpu")
    async with running_fleet(tmp_path, FleetSettings(cdi_dirs=(str(cdi),))) as fleet:
        launched = await fleet.provider.launch(request(shape=gpu))
        assert launched.accelerators == ("nvidia.com/gpu=0",)
        with pytest.raises(NoCapacity, match="1 are given out and 0 are free"):
            await fleet.provider.launch(request(shape=gpu))
        assert len(await fleet.provider.list_instances()) == 1
        await fleet.provider.terminate(launched.instance_id)
        assert await fleet.left_behind() == {}


async def test_what_a_container_can_make_goes_with_its_instance(fleet: Fleet) -> None:
    launched = await fleet.provider.launch(request())
    deep = fleet.names.instance(launched.instance_id).disk_dir / "deep"
    deep.mkdir()
    here = os.open(deep, os.O_RDONLY)
    for _ in range(5_000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    (deep / "locked").touch()
    await run_command("chattr", "+i", deep / "locked")

    await fleet.provider.terminate(launched.instance_id)
    assert await fleet.left_behind() == {}


async def test_one_instance_that_cannot_be_removed_keeps_no_other_from_its_end(
    fleet: Fleet,
) -> None:
    instances = [await fleet.provider.launch(request()) for _ in range(3)]
    bad = sorted(each.instance_id for each in instances)[0]
    undeletable = fleet.names.instance(bad).disk_dir / "swap"
    undeletable.touch(mode=0o600)
    os.posix_fallocate(descriptor := os.open(undeletable, os.O_RDWR), 0, 1 << 20)
    os.close(descriptor)
    await run_command("mkswap", undeletable)
    await run_command("swapon", undeletable)  # nobody may remove a file that the kernel swaps to
    try:
        with pytest.raises(Unavailable, match="swap"):
            await fleet.provider.sweep(())
        assert [each.instance_id for each in await fleet.provider.list_instances()] == [bad]
    finally:
        await run_command("swapoff", undeletable)
    assert await fleet.provider.sweep(()) == [bad]
    assert await fleet.left_behind() == {}
