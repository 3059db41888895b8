"""Every way down the image ladder that an assignment or a failure can take."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.fixtures.images import Entry, make_image, make_layer
from tests.fixtures.registry import Registry, running_registry
from tests.integration.nodeagent.conftest import (
    Fleet,
    Generation,
    assignment_of,
    copy_of,
    mounted,
    probe,
    push,
    running_fleet,
)
from tests.integration.nodeagent.test_damage import stage_of
from zeropull.containerd.client import ContainerdClient
from zeropull.controlapi.messages import (
    CopyState,
    FailureKind,
    ImageAssignment,
    ImagePath,
    LabelledCounter,
    RegistryAccess,
)
from zeropull.errors import AccessDenied
from zeropull.linux.mounts import read_mounts
from zeropull.nodeagent.images.ctr_pull import pull_with_ctr
from zeropull.nodeagent.images.documents import pinned_name, platform_here
from zeropull.resources.stages import Stage


def plugin_command(module: str, *arguments: str) -> tuple[str, ...]:
    return (
        sys.executable, "-m", module, "--socket", "{socket}",
        "--state", "{state}", "--catalog", "{catalog}", "--mounts", "{mounts}",
        "--namespace", "{namespace}", *arguments,
    )  # fmt: skip


@pytest.fixture(scope="module")
def private_registry() -> Iterator[Registry]:
    with running_registry(password_file=True) as running:
        yield running


@pytest.fixture
async def broken_fleet(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    command = plugin_command("tests.fixtures.broken_plugin")
    async with running_fleet(registry, snapshotter_command=command) as running:
        yield running


@pytest.fixture
async def loop_fleet(registry: Registry) -> AsyncIterator[Fleet]:
    command = plugin_command("zeropull.daemons.snapshotter", "--loop-devices")
    async with running_fleet(registry, snapshotter_command=command) as running:
        yield running


async def test_containers_start_over_layers_that_are_mounted_through_loop_devices(
    loop_fleet: Fleet, server_image: ImageAssignment, pulled: Generation
) -> None:
    node = await loop_fleet.launch(pulled.volume)
    copy = copy_of(server_image, "looped")
    node.assign(assignment_of(server_image, copy, volumes=(mounted(node, pulled.volume),)))
    healthy = await node.until_copy("looped", CopyState.HEALTHY, CopyState.FAILED)
    stage = stage_of(healthy, Stage.IMAGE)
    assert (stage.path, stage.bytes_by_source["registry"]) == ("cached", 0), healthy
    folder = node.names.run_dir / "m"
    sources = [each.source for each in read_mounts() if each.target.parent == folder]
    assert len(sources) == len(pulled.chain_ids)
    assert all(source.startswith("/dev/loop") for source in sources), sources


async def test_a_node_that_waits_for_the_generation_asks_no_registry(
    fleet: Fleet, registry: Registry, server_image: ImageAssignment, pulled: Generation
) -> None:
    waiting = dataclasses.replace(server_image, wait_for_generation=True)
    second = await fleet.launch()
    registry.reset()
    second.assign(assignment_of(waiting, copy_of(waiting, "waiter")))
    preparing = await second.until(
        lambda report: bool(
            report.copies
            and report.copies[0].stages
            and "waiting" in report.copies[0].stages[0].detail
        )
    )
    assert preparing.copies[0].state is CopyState.PREPARING

    await fleet.provider.attach(second.instance_id, pulled.volume)
    attached = (mounted(second, pulled.volume),)
    second.assign(assignment_of(waiting, copy_of(waiting, "waiter"), volumes=attached))
    healthy = await second.until_copy("waiter", CopyState.HEALTHY, CopyState.FAILED)
    image = stage_of(healthy, Stage.IMAGE)
    assert (image.path, image.bytes_by_source["registry"]) == ("cached", 0)
    assert registry.counts.requests == []


async def test_a_node_stops_waiting_when_it_is_told_to_pull(
    fleet: Fleet, server_image: ImageAssignment
) -> None:
    waiting = dataclasses.replace(server_image, wait_for_generation=True)
    node = await fleet.launch()
    node.assign(assignment_of(waiting, copy_of(waiting, "waiter")))
    await node.until_copy("waiter", CopyState.PREPARING)
    node.assign(assignment_of(server_image, copy_of(server_image, "waiter")))
    healthy = await node.until_copy("waiter", CopyState.HEALTHY, CopyState.FAILED)
    assert stage_of(healthy, Stage.IMAGE).path == "fallback"


def fallback(reason: str) -> LabelledCounter:
    return LabelledCounter("zeropull_node_image_fallbacks_total", "reason", reason, 1)


async def test_an_assigned_rung_is_taken_although_the_cache_has_everything(
    fleet: Fleet, server_image: ImageAssignment, pulled: Generation
) -> None:
    for path, name in ((ImagePath.FALLBACK, "fallback"), (ImagePath.CONTAINERD, "containerd")):
        image = dataclasses.replace(server_image, path=path)
        node = await fleet.launch(pulled.volume)
        copy = copy_of(image, name)
        node.assign(assignment_of(image, copy, volumes=(mounted(node, pulled.volume),)))
        healthy = await node.until_copy(name, CopyState.HEALTHY, CopyState.FAILED)
        stage = stage_of(healthy, Stage.IMAGE)
        assert (stage.path, stage.layers_from_cache) == (name, 0), healthy
        assert stage.bytes_by_source["registry"] > 10_000_000
        report = await node.until(lambda report: bool(report.images[0].path))
        assert report.images[0].complete is (path is ImagePath.FALLBACK)
        assert fallback("assigned") in report.labelled_counters


async def test_an_image_that_our_reading_refuses_is_had_from_containerd(
    registry: Registry, server_image: ImageAssignment
) -> None:
    async with running_fleet(registry, layer_entries=3) as strict:
        node = await strict.launch()
        node.assign(assignment_of(server_image, copy_of(server_image, "refused")))
        healthy = await node.until_copy("refused", CopyState.HEALTHY, CopyState.FAILED)
        stage = stage_of(healthy, Stage.IMAGE)
        assert stage.path == "containerd", healthy
        assert "our reading refuses the image" in stage.detail
        assert "fleet.layer_entries" in stage.detail, "the reason of the rung above is told"
        report = await node.until(lambda report: bool(report.images[0].path))
        assert fallback("refused") in report.labelled_counters


async def test_an_image_that_nobody_can_read_fails_with_both_reasons(
    fleet: Fleet, registry: Registry
) -> None:
    layer = make_layer([Entry("a", b"a")])
    broken = dataclasses.replace(layer, diff_id="sha256:" + "0" * 64)
    image = push(registry, "unreadable", make_image([broken], {"Entrypoint": ["/a"]}))
    node = await fleet.launch()
    node.assign(assignment_of(image, copy_of(image, "unreadable")))
    failed = await node.until_copy("unreadable", CopyState.HEALTHY, CopyState.FAILED)
    assert failed.failure is FailureKind.IMAGE_INTEGRITY, failed
    assert "containerd's own pull failed as well" in failed.message


async def test_a_root_that_cannot_be_mounted_is_had_from_containerd(
    broken_fleet: Fleet, server_image: ImageAssignment
) -> None:
    node = await broken_fleet.launch()
    node.assign(assignment_of(server_image, copy_of(server_image, "moved")))
    healthy = await node.until_copy("moved", CopyState.HEALTHY, CopyState.FAILED)
    assert healthy.state is CopyState.HEALTHY, healthy
    assert stage_of(healthy, Stage.IMAGE).path == "containerd"
    report = await node.until(lambda report: bool(report.images[0].path))
    assert fallback("mount") in report.labelled_counters
    node.assign(assignment_of(server_image))
    await node.until(lambda report: not report.copies)


async def test_a_private_registry_lets_both_of_our_pulls_in(
    fleet: Fleet, private_registry: Registry
) -> None:
    image = push(private_registry, "private", probe(), private_registry.credentials)
    await fleet.provider.allow_loopback_port(int(private_registry.address.rpartition(":")[2]))
    access = RegistryAccess(
        private_registry.address,
        username=private_registry.username,
        password=private_registry.password,
    )
    wrong = dataclasses.replace(access, password="wrong")
    node = await fleet.launch()
    for path in (ImagePath.CONTAINERD, ImagePath.FALLBACK):
        for given in (wrong, access):
            assigned = dataclasses.replace(image, path=path, registry=given)
            name = f"{path}-{'wrong' if given is wrong else 'right'}"
            node.assign(assignment_of(assigned, copy_of(assigned, name)))
            ended = await node.until_copy(name, CopyState.HEALTHY, CopyState.FAILED)
            if given is wrong:
                assert ended.failure is FailureKind.REGISTRY_DENIED, ended
                assert node.report is not None
                assert node.report.images[0].failure is FailureKind.REGISTRY_DENIED
                assert private_registry.address in node.report.images[0].message
            else:
                assert ended.state is CopyState.HEALTHY, ended
                assert stage_of(ended, Stage.IMAGE).path == path
            node.assign(dataclasses.replace(assignment_of(assigned), images=()))
            await node.until(lambda report: not report.copies and not report.images)
        (node.disk / "agent" / "blobs").joinpath(image.manifest_digest[7:]).unlink(missing_ok=True)


async def test_credentials_too_long_for_a_terminal_go_by_a_file_that_is_gone_afterwards(
    fleet: Fleet, private_registry: Registry
) -> None:
    image = push(private_registry, "private", probe(tag="hosts"), private_registry.credentials)
    # With containerd 2 it is not ctr that pulls, but containerd, in the node's network namespace.
    await fleet.provider.allow_loopback_port(int(private_registry.address.rpartition(":")[2]))
    node = await fleet.launch()
    scratch = fleet.root / "scratch"
    scratch.mkdir()
    namespace = node.names.containerd_namespace
    access = RegistryAccess(
        private_registry.address,
        username=private_registry.username,
        password=private_registry.password,
    )

    async def pull(access: RegistryAccess) -> None:
        await pull_with_ctr(
            pinned_name(image),
            socket=node.names.containerd_socket,
            namespace=namespace,
            platform=platform_here(),
            access=access,
            plain_http=True,
            scratch=scratch,
            longest_prompt_bytes=0,
        )

    with pytest.raises(AccessDenied):
        await pull(dataclasses.replace(access, password="wrong"))
    await pull(access)
    async with ContainerdClient(node.names.containerd_socket, namespace) as client:
        assert (await client.images.get(pinned_name(image))).target.digest == image.manifest_digest
    assert list(scratch.iterdir()) == []
