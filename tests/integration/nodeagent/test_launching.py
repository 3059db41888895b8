"""Copies on a real node: cached, partial and plain starts, failures, adoption, a clean end."""

from __future__ import annotations

from pathlib import Path

from tests.fixtures.registry import Registry
from tests.integration.nodeagent.conftest import (
    Fleet,
    assignment_of,
    build_generation,
    copy_of,
    mounted,
)
from zeropull.controlapi.messages import (
    CopyState,
    FailureKind,
    ImageAssignment,
)
from zeropull.providers.local.processes import AGENT, SNAPSHOTTER
from zeropull.resources.stages import Stage


async def test_the_first_pull_feeds_a_generation_that_needs_no_registry(
    fleet: Fleet, registry: Registry, server_image: ImageAssignment
) -> None:
    first = await fleet.launch()
    first.assign(assignment_of(server_image, copy_of(server_image, "copy-a")))
    healthy = await first.until_copy("copy-a", CopyState.HEALTHY, CopyState.FAILED)
    assert healthy.state is CopyState.HEALTHY, healthy
    image = next(each for each in healthy.stages if each.stage is Stage.IMAGE)
    assert (image.path, image.layers_from_cache, image.layers_total) == ("fallback", 0, 3)
    assert image.bytes_by_source["registry"] > 1_000_000
    await first.until(lambda report: bool(report.images) and report.images[0].complete)
    volume = build_generation(first, server_image, fleet.root / "generation")

    registry.switch_off()
    second = await fleet.launch(volume)
    volumes = (mounted(second, volume),)
    second.assign(assignment_of(server_image, copy_of(server_image, "copy-b"), volumes=volumes))
    healthy = await second.until_copy("copy-b", CopyState.HEALTHY, CopyState.FAILED)
    assert healthy.state is CopyState.HEALTHY, healthy
    image = next(each for each in healthy.stages if each.stage is Stage.IMAGE)
    assert (image.path, image.layers_from_cache, image.layers_total) == ("cached", 3, 3)
    assert image.bytes_by_source["registry"] == 0
    assert image.detail == "3/3 layers from the cache (100.0 %), 0 B from the registry"


async def test_a_killed_agent_adopts_what_runs_and_stop_leaves_nothing(
    fleet: Fleet, server_image: ImageAssignment
) -> None:
    node = await fleet.launch()
    node.assign(assignment_of(server_image, copy_of(server_image, "copy-c")))
    before = await node.until_copy("copy-c", CopyState.HEALTHY)
    started = node.report
    assert started is not None
    await node.kill(AGENT)
    assert await node.provider.heal(node.instance_id)
    again = await node.until(lambda report: report.agent_started_s > started.agent_started_s)
    assert again.copies[0].healthy_at_s == before.healthy_at_s
    assert again.copies[0].restarts == 0
    assert again.copies[0].state is CopyState.HEALTHY

    node.assign(assignment_of(server_image, copy_of(server_image, "copy-c", desired="stop")))
    await node.until_copy("copy-c", CopyState.STOPPED)
    node.assign(assignment_of(server_image))
    await node.until(lambda report: not report.copies)
    assert not list((node.disk / "agent" / "copies").iterdir())
    assert not list(Path("/sys/fs/cgroup").glob(f"*/zeropull-*/{node.instance_id}/copies/copy-c"))


async def test_a_container_that_exits_fails_with_its_last_words(
    fleet: Fleet, server_image: ImageAssignment
) -> None:
    node = await fleet.launch()
    environment = {"SERVER_BEHAVIOUR": "exit-at-start", "SERVER_EXIT_CODE": "7"}
    copy = copy_of(server_image, "copy-d", environment=environment, health_timeout_s=4.0)
    node.assign(assignment_of(server_image, copy))
    failed = await node.until_copy("copy-d", CopyState.FAILED)
    assert failed.failure is FailureKind.CONTAINER_EXITED
    assert "status 7" in failed.message
    assert failed.restarts >= 1


async def test_without_the_plugin_containerd_pulls_by_itself(
    fleet: Fleet, server_image: ImageAssignment
) -> None:
    node = await fleet.launch()
    await node.kill(SNAPSHOTTER)
    node.assign(assignment_of(server_image, copy_of(server_image, "copy-e")))
    healthy = await node.until_copy("copy-e", CopyState.HEALTHY, CopyState.FAILED)
    assert healthy.state is CopyState.HEALTHY, healthy
    image = next(each for each in healthy.stages if each.stage is Stage.IMAGE)
    assert image.path == "containerd"
