"""A profile recorded at the first start of an image, used by a second node with a cache volume."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.fixtures.plugin import wait_until
from tests.integration.nodeagent.conftest import (
    Fleet,
    Node,
    assignment_of,
    build_generation,
    copy_of,
)
from zeropull.controlapi.messages import CopyState, ImageAssignment, VolumeMount
from zeropull.imagecache.layout import generation_layer, generation_profile
from zeropull.layers.layout import BLOCK_BYTES, DATA_FILE
from zeropull.oci.digests import hex_of
from zeropull.providers.local.processes import AGENT
from zeropull.providers.protocol import Volume
from zeropull.startprofiles.profile import StartProfile, decode_profile


def profile_file(node: Node, image: ImageAssignment) -> Path:
    return node.disk / "profiles" / f"{hex_of(image.manifest_digest)}.json"


async def recorded_profile(node: Node, image: ImageAssignment) -> bytes:
    path = profile_file(node, image)
    await asyncio.to_thread(wait_until, path.exists, lambda: None)
    return path.read_bytes()


async def volume_with_profile(
    fleet: Fleet, image: ImageAssignment
) -> tuple[Volume, StartProfile, Node]:
    node = await fleet.launch()
    node.assign(assignment_of(image, copy_of(image, "copy-first")))
    await node.until_copy("copy-first", CopyState.HEALTHY)
    content = await recorded_profile(node, image)
    await node.until(lambda report: bool(report.images) and report.images[0].complete)
    volume = build_generation(node, image, fleet.root / "generation")
    path = generation_profile(volume.path, image.manifest_digest)
    path.parent.mkdir()
    path.write_bytes(content)
    return volume, decode_profile(content), node


async def start_with(fleet: Fleet, volume: Volume, image: ImageAssignment) -> Node:
    node = await fleet.launch(volume)
    mounted = VolumeMount(1, str(node.disk / "volumes" / "1"), volume.index_digest)
    node.assign(assignment_of(image, copy_of(image, "copy-later"), volumes=(mounted,)))
    await node.until_copy("copy-later", CopyState.HEALTHY)
    return node


def agent_log(node: Node) -> str:
    logs = (node.disk / "logs").glob("*agent*.log")
    return "".join(path.read_text(errors="replace") for path in logs)


def traces_of(node: Node) -> list[Path]:
    return list(Path("/sys/kernel/tracing/instances").glob(f"{node.names.trace_prefix}*"))


async def test_a_first_start_is_recorded_and_read_ahead_on_the_next_node(
    fleet: Fleet, server_image: ImageAssignment
) -> None:
    volume, profile, first = await volume_with_profile(fleet, server_image)
    assert profile.manifest_digest == server_image.manifest_digest
    assert profile.size_bytes > 1_000_000  # a Python interpreter at least
    assert not traces_of(first)

    second = await start_with(fleet, volume, server_image)
    await asyncio.to_thread(
        wait_until, lambda: "start profile is warm" in agent_log(second), lambda: None
    )
    assert f"profile_bytes={profile.size_bytes}" in agent_log(second).replace('": ', "=").replace(
        '"', ""
    )
    assert not profile_file(second, server_image).exists()


async def test_a_bad_block_of_the_profile_drops_the_layer(
    fleet: Fleet, server_image: ImageAssignment
) -> None:
    volume, profile, _ = await volume_with_profile(fleet, server_image)
    run = profile.runs[-1]
    damaged = profile.chain_ids[profile.files[run.file].layer]
    layer = generation_layer(volume.path, damaged)
    offset = run.start * 4096 // BLOCK_BYTES * BLOCK_BYTES
    with (layer / DATA_FILE).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))
    second = await fleet.launch(volume)
    mounted = VolumeMount(1, str(second.disk / "volumes" / "1"), volume.index_digest)
    second.assign(
        assignment_of(server_image, copy_of(server_image, "copy-later"), volumes=(mounted,))
    )
    await second.until(
        lambda report: any(damaged in image.dropped_layers for image in report.images)
    )
    await second.until_copy("copy-later", CopyState.HEALTHY)


@pytest.mark.parametrize("end", ["next-agent", "terminate"])
async def test_an_agent_that_dies_while_it_records_leaves_no_trace_for_long(
    fleet: Fleet, server_image: ImageAssignment, end: str
) -> None:
    if not Path("/sys/kernel/tracing/events/erofs").is_dir():
        pytest.skip("no mounted tracefs with erofs tracepoints here")
    node = await fleet.launch()
    never_healthy = copy_of(server_image, "copy-1", environment={"SERVER_BEHAVIOUR": "hang"})
    node.assign(assignment_of(server_image, never_healthy))
    await asyncio.to_thread(wait_until, lambda: bool(traces_of(node)), lambda: None)
    await node.kill(AGENT)
    assert traces_of(node)
    if end == "terminate":
        await fleet.provider.terminate(node.instance_id)
    else:
        assert await fleet.provider.heal(node.instance_id)
    await asyncio.to_thread(wait_until, lambda: not traces_of(node), lambda: None)
