"""Daemons of a node that are forked from a process which has their imports behind it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.fixtures.local_fleet import Fleet, is_running, request
from tests.integration.serve.served import wait_until
from zeropull.linux.network_namespaces import netns_identity
from zeropull.providers.local import LocalProvider
from zeropull.providers.local.processes import daemon_pid

ROLES = {"agent": "zeropull.daemons.node_agent", "snapshotter": "zeropull.daemons.snapshotter"}


def words_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(wait_until, "it is gone", lambda: not is_running(pid))


async def prepared(fleet: Fleet) -> LocalProvider:
    provider = LocalProvider(fleet.settings, fleet.names.state_dir, fleet.names.run_dir)
    provider.prepare()
    await asyncio.to_thread(wait_until, "it is ready", lambda: provider.spawner.is_ready)
    return provider


async def test_a_forked_daemon_is_like_an_executed_one_and_outlives_the_spawner(
    fleet: Fleet,
) -> None:
    provider = await prepared(fleet)
    try:
        launched = await provider.launch(request())
        names = fleet.names.instance(launched.instance_id)
        pids = {role: daemon_pid(names, role) or 0 for role in ROLES}
        spawner = parent_of(pids["agent"])
        assert "zeropull.daemons.spawner" in words_of(spawner)
        assert parent_of(pids["snapshotter"]) == spawner
        namespace = Path(f"/proc/{pids['agent']}/ns/net").stat()
        assert (namespace.st_dev, namespace.st_ino) == netns_identity(names.netns)
        for role, module in ROLES.items():
            assert module in words_of(pids[role])
            assert names.cgroup in Path(f"/proc/{pids[role]}/cgroup").read_text()
            assert os.getsid(pids[role]) == pids[role]
            descriptors = [os.readlink(p) for p in Path(f"/proc/{pids[role]}/fd").iterdir()]  # noqa: PTH115
            assert descriptors[0] == "/dev/null"
            assert descriptors[1] == descriptors[2] == str(names.logs_dir / f"{role}.log")
    finally:
        await provider.close()
    assert not is_running(spawner)
    assert all(is_running(pid) for pid in pids.values())


async def test_without_a_spawner_daemons_are_executed(fleet: Fleet) -> None:
    provider = await prepared(fleet)
    try:
        first = await provider.launch(request())
        names = fleet.names.instance(first.instance_id)
        killed = daemon_pid(names, "agent") or 0
        for pid in (parent_of(killed), killed):
            await kill(pid)
        assert await provider.heal(first.instance_id)
        agent = daemon_pid(names, "agent") or 0
        assert ROLES["agent"] in words_of(agent)
        assert parent_of(agent) == os.getpid()
    finally:
        await provider.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_spawner_that_has_died_or_hangs_comes_back(
    fleet: Fleet, number: signal.Signals
) -> None:
    provider = await prepared(fleet)
    try:
        first = await provider.launch(request())
        names = fleet.names.instance(first.instance_id)
        dead = provider.spawner.pid or 0
        assert parent_of(daemon_pid(names, "agent") or 0) == dead
        os.kill(dead, number)
        await kill(daemon_pid(names, "agent") or 0)
        assert await provider.heal(first.instance_id)
        assert daemon_pid(names, "agent") is not None
        await asyncio.to_thread(wait_until, "it is back", lambda: provider.spawner.is_ready)
        assert not is_running(dead)
        await kill(daemon_pid(names, "agent") or 0)
        assert await provider.heal(first.instance_id)
        assert parent_of(daemon_pid(names, "agent") or 0) == provider.spawner.pid != dead
    finally:
        await provider.close()
