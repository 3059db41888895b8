"""Caches that are incomplete or damaged cost bytes from the registry and never a launch."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from tests.fixtures.registry import Registry
from tests.integration.nodeagent.conftest import (
    Fleet,
    Generation,
    Node,
    assignment_of,
    copy_of,
    mounted,
    probe,
    push,
    running_fleet,
)
from zeropull.controlapi.messages import (
    CopyReport,
    CopyState,
    FailureKind,
    ImageAssignment,
    ModelArtifact,
    StoreAccess,
)
from zeropull.oci.digests import hex_of
from zeropull.resources.stages import Stage, StageRecord


def stage_of(copy: CopyReport, stage: Stage) -> StageRecord:
    return next(each for each in copy.stages if each.stage is stage)


async def start_from(fleet: Fleet, generation: Generation, image: ImageAssignment) -> Node:
    node = await fleet.launch(generation.volume)
    volumes = (mounted(node, generation.volume),)
    node.assign(assignment_of(image, copy_of(image, "second"), volumes=volumes))
    return node


@pytest.mark.parametrize("damage", ["missing", "metadata"])
async def test_only_the_layer_that_is_bad_is_pulled(
    fleet: Fleet, pulled: Generation, server_image: ImageAssignment, damage: str
) -> None:
    generation = pulled.copied(fleet.root / "generation")
    layer = generation.layer(1)
    if damage == "missing":
        shutil.rmtree(layer)
    else:
        content = bytearray((layer / "meta.erofs").read_bytes())
        content[2000] ^= 1
        (layer / "meta.erofs").write_bytes(content)
    second = await start_from(fleet, generation, server_image)
    healthy = await second.until_copy("second", CopyState.HEALTHY, CopyState.FAILED)
    assert healthy.state is CopyState.HEALTHY, healthy
    image = stage_of(healthy, Stage.IMAGE)
    assert (image.path, image.layers_from_cache) == ("partial", 2)
    assert image.bytes_by_source["registry"] > 0
    assert second.report is not None
    assert second.report.images[0].dropped_layers == (generation.chain_ids[1],)


async def test_a_generation_with_a_wrong_digest_is_not_looked_at(
    fleet: Fleet, pulled: Generation, server_image: ImageAssignment
) -> None:
    generation = pulled.copied(fleet.root / "generation")
    index = generation.volume.path / "generation.json"
    index.write_bytes(index.read_bytes() + b" ")
    second = await start_from(fleet, generation, server_image)
    healthy = await second.until_copy("second", CopyState.HEALTHY, CopyState.FAILED)
    assert stage_of(healthy, Stage.IMAGE).path == "fallback"


async def test_a_bad_block_found_later_replaces_the_container(
    fleet: Fleet, pulled: Generation, server_image: ImageAssignment
) -> None:
    generation = pulled.copied(fleet.root / "generation")
    chain = generation.chain_ids[2]
    data = generation.layer(2) / "data.erofs"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1  # in the padding: the server starts all the same
    data.write_bytes(content)
    second = await start_from(fleet, generation, server_image)
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


async def test_a_bit_that_flips_on_the_nodes_own_disk_is_mended(
    registry: Registry, server_image: ImageAssignment
) -> None:
    async with running_fleet(registry, scrub_interval_s=1.0, scrub_bytes_per_s=0) as fleet:
        node = await fleet.launch()
        node.assign(assignment_of(server_image, copy_of(server_image, "first")))
        await node.until_copy("first", CopyState.HEALTHY)
        report = await node.until(lambda r: bool(r.images) and r.images[0].complete)
        top = report.images[0].chain_ids[-1]
        data = node.disk / "layers" / hex_of(top) / "data.erofs"
        good, inode = data.read_bytes(), data.stat().st_ino
        with data.open("r+b") as file:  # under the mount of the container that runs
            file.seek(len(good) - 1)
            file.write(bytes([good[-1] ^ 1]))
        report = await node.until(
            lambda report: (
                report.copies[0].restarts == 1 and report.copies[0].state is CopyState.HEALTHY
            ),
            60.0,
        )
        assert data.read_bytes() == good
        assert data.stat().st_ino != inode
        assert report.images[0].dropped_layers == (), "no volume is to blame"
        link = node.disk / "catalog" / hex_of(top)
        assert link.readlink() == data.parent


async def test_a_suspected_layer_is_verified_without_waiting_for_a_pass(
    registry: Registry, server_image: ImageAssignment
) -> None:
    async with running_fleet(registry, scrub_interval_s=0.0) as fleet:
        node = await fleet.launch()
        assignment = assignment_of(server_image, copy_of(server_image, "first"))
        node.assign(assignment)
        await node.until_copy("first", CopyState.HEALTHY)
        report = await node.until(lambda r: bool(r.images) and r.images[0].complete)
        low = report.images[0].chain_ids[0]
        data = node.disk / "layers" / hex_of(low) / "data.erofs"
        good = data.read_bytes()
        with data.open("r+b") as file:
            file.seek(len(good) - 1)
            file.write(bytes([good[-1] ^ 1]))
        node.assign(dataclasses.replace(assignment, suspect_layers=(low,)))
        await node.until(
            lambda report: (
                report.copies[0].restarts == 1 and report.copies[0].state is CopyState.HEALTHY
            ),
            60.0,
        )
        assert data.read_bytes() == good


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
    # Other content behind the same URL is another artifact, for the copies that come from now on.
    (store / "weights.bin").write_bytes(b"W" * 100_001)
    third = copy_of(server_image, "three", artifacts=(model,))
    node.assign(assignment_of(server_image, *copies, third))
    report = await node.until_copy("three", CopyState.HEALTHY)
    assert stage_of(report, Stage.MODEL).bytes_by_source["model_store"] == 100_001
    assert stage_of(report, Stage.IMAGE).bytes_by_source["registry"] == 0
    kept = [folder / "weights.bin" for folder in (node.disk / "models").iterdir()]
    assert sorted(file.stat().st_size for file in kept) == [100_000, 100_001]


async def test_failures_say_what_to_do(
    fleet: Fleet, registry: Registry, server_image: ImageAssignment
) -> None:
    node = await fleet.launch()
    unknown = ImageAssignment(f"{registry.address}/nothing:v1", "sha256:" + "1" * 64)
    nowhere = ModelArtifact("s3://m/no.tar.gz", access=StoreAccess(directory=str(fleet.root)))
    node.assign(
        assignment_of(
            server_image,
            copy_of(unknown, "unknown"),
            copy_of(server_image, "model", artifacts=(nowhere,)),
            copy_of(
                server_image,
                "silent",
                environment={"SERVER_BEHAVIOUR": "ping-never"},
                health_timeout_s=3.0,
            ),
            images=(server_image, unknown),
        )
    )
    expected = {
        "unknown": FailureKind.IMAGE_NOT_FOUND,
        "model": FailureKind.MODEL_NOT_FOUND,
        "silent": FailureKind.HEALTH_TIMEOUT,
    }
    for copy_id, kind in expected.items():
        failed = await node.until_copy(copy_id, CopyState.FAILED)
        assert failed.failure is kind, failed
        assert failed.message
    await node.until(
        lambda report: (
            [image.failure for image in report.images] == [None, FailureKind.IMAGE_NOT_FOUND]
        )
    )


async def test_bytes_that_are_damaged_on_their_way_are_asked_for_once_more(
    fleet: Fleet, registry: Registry
) -> None:
    images = {name: push(registry, name, probe(tag=name)) for name in ("once", "always")}
    originals: dict[Path, bytes] = {}
    node = await fleet.launch()
    log = node.disk / "logs" / "agent.log"
    for name, image in images.items():
        # The config is the one blob that the two images do not share with any other.
        config = probe(tag=name).config.digest
        path = registry.blob_path(config)
        originals[path] = path.read_bytes()
        path.write_bytes(originals[path].replace(b"linux", b"lynux"))
        node.assign(assignment_of(image, copy_of(image, name)))
        if name == "once":
            await node.until(lambda _: b"damaged bytes, once more" in log.read_bytes())
            path.write_bytes(originals[path])
            healthy = await node.until_copy(name, CopyState.HEALTHY, CopyState.FAILED)
            assert healthy.state is CopyState.HEALTHY, healthy
            assert healthy.restarts == 0
        else:
            failed = await node.until_copy(name, CopyState.HEALTHY, CopyState.FAILED)
            assert failed.failure is FailureKind.IMAGE_INTEGRITY, failed
            assert config in failed.message
