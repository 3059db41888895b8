"""Whatever dies while copies serve: they serve on, or are replaced, and nothing is left."""

from __future__ import annotations

import os
from pathlib import Path

import aiohttp
import pytest

from tests.integration.nodeagent.conftest import (
    Fleet,
    Generation,
    ask,
    assignment_of,
    copy_of,
    kill_process,
)
from tests.integration.nodeagent.test_damage import stage_of, start_from
from zeropull.controlapi.messages import (
    CopyReport,
    CopyState,
    FailureKind,
    ImageAssignment,
    LabelledCounter,
    NodeReport,
    ResourceLimits,
)
from zeropull.providers.local.processes import AGENT, CONTAINERD, SNAPSHOTTER
from zeropull.resources.stages import Stage


def shim_of(copy_id: str, disk: Path) -> int:
    """PID of the shim that holds the copy's container."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if {b"-id", copy_id.encode(), f"zeropull-{disk.name}".encode()} <= set(command):
            return int(process.name)
    raise AssertionError(f"no shim of {copy_id} runs")


def replaced(report: NodeReport, copy_id: str, restarts: int = 1) -> bool:
    copy = next(each for each in report.copies if each.copy_id == copy_id)
    return copy.restarts >= restarts and copy.state is CopyState.HEALTHY


async def test_a_copy_that_breaks_is_replaced_while_its_neighbours_serve_on(
    fleet: Fleet, probe_image: ImageAssignment
) -> None:
    names = ("sick", "hungry", "shimless", "neighbour")
    node = await fleet.launch()
    limits = ResourceLimits(memory_bytes=96 << 20)
    node.assign(
        assignment_of(
            probe_image,
            *(
                copy_of(probe_image, name, **({"limits": limits} if name == "hungry" else {}))
                for name in names
            ),
        )
    )
    copies: dict[str, CopyReport] = {}
    for name in names:
        copies[name] = await node.until_copy(name, CopyState.HEALTHY)

    await ask(copies["sick"], do="ping", status=500)
    await kill_process(shim_of("shimless", node.disk))
    with pytest.raises((aiohttp.ClientError, ValueError)):
        await ask(copies["hungry"], do="eat")
    hungry = await node.until_copy("hungry", CopyState.BACKOFF)
    assert hungry.failure is FailureKind.CONTAINER_EXITED
    assert "ended by signal 9" in hungry.message
    assert "memory" in hungry.message
    assert hungry.next_start_s is not None
    sick = await node.until_copy("sick", CopyState.UNHEALTHY, CopyState.BACKOFF)
    assert "/ping failed 3 times in a row: status 500" in sick.message
    report = await node.until(
        lambda report: all(replaced(report, name) for name in names if name != "neighbour")
    )
    (neighbour,) = [each for each in report.copies if each.copy_id == "neighbour"]
    assert (neighbour.restarts, neighbour.state) == (0, CopyState.HEALTHY)
    for name in names:
        assert (await ask(copies[name], do="look"))["argv"] == ["serve"]

    figures = await node.until(lambda report: "CPUUtilization" in report.utilization)
    assert 0.0 < figures.utilization["MemoryUtilization"] < 100.0
    assert 0.0 < figures.utilization["DiskUtilization"] < 100.0
    assert figures.utilization["CPUUtilization"] <= 100.0 * (os.cpu_count() or 1) * 1.1
    assert figures.counters["zeropull_snapshotter_hits_total"] >= 4.0
    assert figures.counters["zeropull_node_registry_bytes_total"] > 10_000_000
    assert LabelledCounter("zeropull_node_images_total", "path", "fallback", 1) in (
        figures.labelled_counters
    )


async def test_containerd_is_killed_and_the_container_serves_on_as_it_was(
    fleet: Fleet, probe_image: ImageAssignment
) -> None:
    node = await fleet.launch()
    node.assign(assignment_of(probe_image, copy_of(probe_image, "server")))
    before = await node.until_copy("server", CopyState.HEALTHY)
    shim = shim_of("server", node.disk)
    await ask(before, do="ping", status=200)
    await node.kill(CONTAINERD)
    assert (await ask(before, do="look"))["argv"] == ["serve"]
    assert await fleet.provider.heal(node.instance_id)
    # A second copy shows that the agent has found its way back to containerd.
    node.assign(
        assignment_of(probe_image, copy_of(probe_image, "server"), copy_of(probe_image, "second"))
    )
    await node.until_copy("second", CopyState.HEALTHY)
    after = node.copy("server")
    assert after is not None
    assert (after.restarts, after.healthy_at_s) == (0, before.healthy_at_s)
    assert shim_of("server", node.disk) == shim
    node.assign(assignment_of(probe_image, copy_of(probe_image, "second")))
    await node.until(lambda report: [each.copy_id for each in report.copies] == ["second"])


async def test_an_image_that_a_killed_agent_left_is_still_scrubbed(
    fleet: Fleet, server_image: ImageAssignment, pulled: Generation
) -> None:
    generation = pulled.copied(fleet.root / "generation")
    second = await start_from(fleet, generation, server_image)
    await second.until_copy("second", CopyState.HEALTHY)
    await second.kill(AGENT)
    data = generation.layer(2) / "data.erofs"
    with data.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    assert await fleet.provider.heal(second.instance_id)
    report = await second.until(lambda report: replaced(report, "second"))
    assert report.images[0].dropped_layers == (generation.chain_ids[2],)
    assert report.images[0].registry_bytes > 0


async def test_a_killed_agent_leaves_no_namespace_when_the_instance_ends(
    fleet: Fleet, probe_image: ImageAssignment
) -> None:
    node = await fleet.launch()
    node.assign(assignment_of(probe_image, *(copy_of(probe_image, n) for n in ("one", "two"))))
    for name in ("one", "two"):
        await node.until_copy(name, CopyState.HEALTHY)
    prefix = node.names.copy_netns_prefix
    assert len([p for p in Path("/run/netns").iterdir() if p.name.startswith(prefix)]) == 2
    await node.kill(AGENT)
    await fleet.provider.terminate(node.instance_id)
    assert not [p for p in Path("/run/netns").iterdir() if p.name.startswith(prefix)]


async def test_all_of_a_node_is_killed_during_a_pull_and_the_launch_completes(
    fleet: Fleet, server_image: ImageAssignment
) -> None:
    node = await fleet.launch(bits_per_s=40_000_000)
    node.assign(assignment_of(server_image, copy_of(server_image, "interrupted")))
    await node.until(
        lambda report: bool(
            report.copies
            and report.copies[0].stages
            and "layers here" in report.copies[0].stages[0].detail
        )
    )
    for role in (AGENT, SNAPSHOTTER, CONTAINERD):
        await node.kill(role)
    assert [path for path in (node.disk / "layers").iterdir() if path.name.startswith(".tmp-")]
    assert await fleet.provider.heal(node.instance_id)
    healthy = await node.until_copy("interrupted", CopyState.HEALTHY, CopyState.FAILED)
    assert healthy.state is CopyState.HEALTHY, healthy
    assert stage_of(healthy, Stage.IMAGE).path in ("fallback", "partial")
    left = [path.name for path in (node.disk / "layers").iterdir()]
    assert not [name for name in left if name.startswith(".tmp-")]
    assert len(left) == 3
