"""Caches that are incomplete or damaged cost bytes from the registry and never a launch."""

from __future__ import annotations

import shutil

import pytest

from tests.fixtures.images import Entry, make_image, push_image
from tests.fixtures.registry import Registry
from tests.integration.nodeagent.conftest import (
    Fleet,
    Node,
    assignment_of,
    build_generation,
    copy_of,
)
from zeropull.controlapi.messages import (
    CopyReport,
    CopyState,
    FailureKind,
    ImageAssignment,
    ModelArtifact,
    StoreAccess,
    VolumeMount,
)
from zeropull.oci.digests import hex_of
from zeropull.providers.protocol import Volume
from zeropull.resources.stages import Stage, StageRecord


def stage_of(copy: CopyReport, stage: Stage) -> StageRecord:
    return next(each for each in copy.stages if each.stage is stage)


async def pulled_node(fleet: Fleet, image: ImageAssignment) -> Node:
    node = await fleet.launch()
    node.assign(assignment_of(image, copy_of(image, "first")))
    await node.until_copy("first", CopyState.HEALTHY)
    await node.until(lambda report: bool(report.images) and report.images[0].complete)
    return node


async def start_from(fleet: Fleet, volume: Volume, image: ImageAssignment) -> Node:
    node = await fleet.launch(volume)
    mounted = VolumeMount(1, str(node.disk / "volumes" / "1"), volume.index_digest)
    node.assign(assignment_of(image, copy_of(image, "second"), volumes=(mounted,)))
    return node


@pytest.mark.parametrize("damage", ["missing", "metadata"])
async def test_only_the_layer_that_is_bad_is_pulled(
    fleet: Fleet, registry: Registry, server_image: ImageAssignment, damage: str
) -> None:
    first = await pulled_node(fleet, server_image)
    volume = build_generation(first, server_image, fleet.root / "generation")
    assert first.report is not None
    chains = first.report.images[0].chain_ids
    layer = volume.path / "layers" / hex_of(chains[1])
    if damage == "missing":
        shutil.rmtree(layer)
    else:
        content = bytearray((layer / "meta.erofs").read_bytes())
        content[2000] ^= 1
        (layer / "meta.erofs").write_bytes(content)
    second = await start_from(fleet, volume, server_image)
    healthy = await second.until_copy("second", CopyState.HEALTHY, CopyState.FAILED)
    assert healthy.state is CopyState.HEALTHY, healthy
    image = stage_of(healthy, Stage.IMAGE)
    assert (image.path, image.layers_from_cache) == ("partial", 2)
    assert image.bytes_by_source["registry"] > 0
    assert second.report is not None
    assert second.report.images[0].dropped_layers == (chains[1],)


async def test_a_generation_with_a_wrong_digest_is_not_looked_at(
    fleet: Fleet, server_image: ImageAssignment
) -> None:
    first = await pulled_node(fleet, server_image)
    volume = build_generation(first, server_image, fleet.root / "generation")
    index = volume.path / "generation.json"
    index.write_bytes(index.read_bytes() + b" ")
    second = await start_from(fleet, volume, server_image)
    healthy = await second.until_copy("second", CopyState.HEALTHY, CopyState.FAILED)
    assert stage_of(healthy, Stage.IMAGE).path == "fallback"


async def test_a_bad_block_found_later_replaces_the_container(
    fleet: Fleet, server_image: ImageAssignment
) -> None:
    first = await pulled_node(fleet, server_image)
    volume = build_generation(first, server_image, fleet.root / "generation")
    assert first.report is not None
    chain = first.report.images[0].chain_ids[2]
    data = volume.path / "layers" / hex_of(chain) / "data.erofs"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1  # in the padding: the server starts all the same
    data.write_bytes(content)
    second = await start_from(fleet, volume, server_image)
    healthy = await second.until_copy("second", CopyState.HEALTHY)
    assert stage_of(healthy, Stage.IMAGE).path == "cached"
    report = await second.until(
        lambda report: (
            report.copies[0].restarts == 1 and report.copies[0].state is CopyState.HEALTHY
        )
    )
    assert report.images[0].dropped_layers == (chain,)
    link = second.disk / "catalog" / hex_of(chain)
    assert link.readlink() == second.disk / "layers" / hex_of(chain)


async def test_copies_that_start_together_download_image_and_model_once(
    fleet: Fleet, registry: Registry, server_image: ImageAssignment
) -> None:
    store = fleet.root / "store"
    store.mkdir()
    (store / "weights.bin").write_bytes(b"w" * 100_000)
    model = ModelArtifact("s3://models/weights.bin", access=StoreAccess(directory=str(store)))
    node = await fleet.launch()
    copies = [copy_of(server_image, name, artifacts=(model,)) for name in ("one", "two")]
    node.assign(assignment_of(server_image, *copies))
    reports = [await node.until_copy(c.copy_id, CopyState.HEALTHY) for c in copies]
    for source, stage in (("registry", Stage.IMAGE), ("model_store", Stage.MODEL)):
        spent = [stage_of(each, stage).bytes_by_source[source] for each in reports]
        assert sorted(spent)[0] == 0 < sorted(spent)[1], source
    assert len(list((node.disk / "models").iterdir())) == 1
    assert len({each.host for each in reports}) == 2


async def test_failures_say_what_to_do(
    fleet: Fleet, registry: Registry, server_image: ImageAssignment
) -> None:
    node = await fleet.launch()
    foreign = make_image([[Entry("serve", b"#!/bin/sh\n", mode=0o755)]], architecture="s390x")
    digest = push_image(registry.direct, "foreign", "v1", foreign)
    wrong_platform = ImageAssignment(f"{registry.address}/foreign:v1", digest)
    unknown = ImageAssignment(f"{registry.address}/nothing:v1", "sha256:" + "1" * 64)
    nowhere = ModelArtifact("s3://m/no.tar.gz", access=StoreAccess(directory=str(fleet.root)))
    node.assign(
        assignment_of(
            server_image,
            copy_of(wrong_platform, "platform"),
            copy_of(unknown, "unknown"),
            copy_of(server_image, "model", artifacts=(nowhere,)),
            copy_of(
                server_image,
                "silent",
                environment={"SERVER_BEHAVIOUR": "ping-never"},
                health_timeout_s=3.0,
            ),
            images=(server_image, wrong_platform, unknown),
        )
    )
    expected = {
        "platform": FailureKind.IMAGE_PLATFORM,
        "unknown": FailureKind.IMAGE_NOT_FOUND,
        "model": FailureKind.MODEL_NOT_FOUND,
        "silent": FailureKind.HEALTH_TIMEOUT,
    }
    for copy_id, kind in expected.items():
        failed = await node.until_copy(copy_id, CopyState.FAILED)
        assert failed.failure is kind, failed
        assert failed.message
