"""Through a real containerd: adoption, a running container, garbage collection, a plugin that is
down."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.containerds import CURRENT, DEBIAN, Containerd, running_containerd
from tests.fixtures.images import Entry, Image, make_image
from tests.fixtures.mounting import mounts_under
from tests.fixtures.plugin import Plugin, running_plugin
from tests.fixtures.rootfs import message_layer, publish_layer, shell_layer
from zeropull.containerd.adopt import adopt_image
from zeropull.containerd.client import ContainerdClient
from zeropull.containerd.containers import Container
from zeropull.containerd.snapshots import TARGET_LABEL, Mount
from zeropull.containerd.tasks import TaskOutput, TaskStatus
from zeropull.errors import AlreadyExists, ContainerError, NotFound, Unavailable
from zeropull.oci.images import Descriptor, ResolvedImage
from zeropull.resources.node import SNAPSHOTTER


@pytest.fixture(scope="module", params=[DEBIAN, CURRENT])
def wired_pair(request: pytest.FixtureRequest) -> Iterator[tuple[Plugin, Containerd]]:
    with (
        running_plugin(f"zptest-{secrets.token_hex(4)}") as plugin,
        running_containerd(request.param, plugin) as containerd,
    ):
        yield plugin, containerd


@pytest.fixture
def own_pair(request: pytest.FixtureRequest) -> Iterator[tuple[Plugin, Containerd]]:
    """A pair of the test's own, which it may break."""
    with (
        running_plugin(f"zptest-{secrets.token_hex(4)}") as plugin,
        running_containerd(DEBIAN, plugin) as containerd,
    ):
        yield plugin, containerd


def resolved(image: Image, reference: str) -> ResolvedImage:
    assert isinstance(image.manifest.content, bytes)
    assert isinstance(image.config.content, bytes)
    return ResolvedImage(
        reference=reference,
        manifest_digest=image.manifest.digest,
        manifest_media_type=image.manifest.media_type,
        manifest=image.manifest.content,
        config_digest=image.config.digest,
        config=image.config.content,
        layers=tuple(Descriptor(b.media_type, b.digest, b.size) for b in image.layers),
        diff_ids=tuple(blob.diff_id for blob in image.layers),
    )


def cached_image(plugin: Plugin, scratch: Path, *, lowest_only: bool = False) -> ResolvedImage:
    """An image that no registry has; its layers are in the catalog."""
    layers: list[list[Entry]] = [shell_layer(), message_layer(secrets.token_hex(8))]
    image = resolved(make_image(layers), f"no.registry.test/app:{secrets.token_hex(3)}")
    parent = ""
    for entries, chain_id in list(zip(layers, image.chain_ids, strict=True))[
        : 1 if lowest_only else 2
    ]:
        if not (plugin.catalog / chain_id[7:]).exists():
            publish_layer(plugin, scratch, entries, chain_id, parent)
        parent = chain_id
    return image


def spec(
    containerd: Containerd, container_id: str, program: str, command: str
) -> dict[str, object]:
    return {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": [program, "-c", command]},
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "cgroupsPath": f"{containerd.cgroup}/{container_id}",
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
        },
    }


async def create(
    client: ContainerdClient,
    containerd: Containerd,
    image: ResolvedImage,
    command: str = "",
    *,
    program: str = "/bin/sh",
) -> tuple[str, list[Mount]]:
    container_id = f"zp-{secrets.token_hex(4)}"
    # Until the container refers to the snapshot, only a lease keeps garbage collection off it.
    async with client.leased() as leased:
        mounts = await leased.snapshots(SNAPSHOTTER).prepare(container_id, image.chain_ids[-1])
        await leased.containers.create(
            Container(
                id=container_id,
                image=image.reference,
                snapshotter=SNAPSHOTTER,
                snapshot_key=container_id,
                spec=spec(containerd, container_id, program, command),
                labels={"kept": "yes"},
            )
        )
    return container_id, mounts


async def remove(client: ContainerdClient, container_id: str) -> None:
    with contextlib.suppress(NotFound):
        await client.tasks.kill(container_id, 9)
        await client.tasks.wait(container_id, timeout_s=10)
    with contextlib.suppress(NotFound):
        await client.tasks.delete(container_id)
    await client.containers.delete(container_id)
    with contextlib.suppress(NotFound):  # garbage collection may have been faster
        await client.snapshots(SNAPSHOTTER).remove(container_id)


async def test_an_adopted_image_runs_and_is_purged_without_a_registry(
    wired_pair: tuple[Plugin, Containerd], tmp_path: Path
) -> None:
    plugin, containerd = wired_pair
    image = cached_image(plugin, tmp_path)
    async with containerd.client() as client:
        await client.namespaces.ensure(plugin.namespace)
        assert await adopt_image(client, SNAPSHOTTER, image) == []
        assert await adopt_image(client, SNAPSHOTTER, image) == []  # idempotent
        record = await client.images.get(image.reference)
        assert record.target.digest == image.manifest_digest
        assert await client.content.read(image.config_digest) == image.config

        container_id, mounts = await create(client, containerd, image, "cat /etc/message; exit 7")
        assert (await client.containers.get(container_id)).labels == {"kept": "yes"}
        log = tmp_path / "log"
        await client.tasks.create(container_id, mounts, TaskOutput.to_file(log))
        assert (await client.tasks.get(container_id)).status is TaskStatus.CREATED
        waiting = asyncio.create_task(client.tasks.wait(container_id, timeout_s=20))
        await client.tasks.start(container_id)
        ended = await waiting
        assert ended.exit_status == 7
        assert (await client.tasks.delete(container_id)).exit_status == 7
        assert len(log.read_text()) == 16
        await remove(client, container_id)

        await client.images.delete(image.reference)
        left = {info.name for info in await client.snapshots(SNAPSHOTTER).list()}
        assert left.isdisjoint(image.chain_ids)
        with pytest.raises(NotFound):
            await client.content.info(image.manifest_digest)
    assert mounts_under(plugin.mounts) == []


async def test_a_running_container_is_killed_and_survives_a_plugin_restart(
    wired_pair: tuple[Plugin, Containerd], tmp_path: Path
) -> None:
    plugin, containerd = wired_pair
    image = cached_image(plugin, tmp_path)
    async with containerd.client() as client:
        assert await adopt_image(client, SNAPSHOTTER, image) == []
        container_id, mounts = await create(client, containerd, image, "sleep 600")
        await client.tasks.create(container_id, mounts)
        pid = await client.tasks.start(container_id)
        plugin.kill()
        plugin.start()
        assert [(t.container_id, t.pid, t.status) for t in await client.tasks.list()] == [
            (container_id, pid, TaskStatus.RUNNING)
        ]
        assert len(list(Path(f"/proc/{pid}/root/etc/message").read_text())) == 16
        waiting = asyncio.create_task(client.tasks.wait(container_id, timeout_s=20))
        await client.tasks.kill(container_id, 9, every_process=True)
        assert (await waiting).exit_status == 137
        await _until_answered(client)
        await remove(client, container_id)
        await client.images.delete(image.reference)


async def test_a_command_that_is_not_there_is_a_container_error(
    wired_pair: tuple[Plugin, Containerd], tmp_path: Path
) -> None:
    plugin, containerd = wired_pair
    image = cached_image(plugin, tmp_path)
    async with containerd.client() as client:
        await adopt_image(client, SNAPSHOTTER, image)
        container_id, mounts = await create(client, containerd, image, program="/nothing")
        with pytest.raises(ContainerError, match="nothing"):
            await client.tasks.create(container_id, mounts)
            await client.tasks.start(container_id)
        await remove(client, container_id)
        await client.images.delete(image.reference)


async def test_adopted_images_are_one_snapshot_each_and_share_mounts(
    wired_pair: tuple[Plugin, Containerd], tmp_path: Path
) -> None:
    plugin, containerd = wired_pair
    one, two = cached_image(plugin, tmp_path), cached_image(plugin, tmp_path)
    assert one.chain_ids[0] == two.chain_ids[0]
    async with containerd.client() as client:
        for image in (one, two):
            assert await adopt_image(client, SNAPSHOTTER, image) == []
        snapshots = client.snapshots(SNAPSHOTTER)
        await client.leases.delete(await client.leases.create("sweep"), sync=True)
        found = {info.name: info.parent for info in await snapshots.list()}
        assert found == {one.chain_ids[-1]: "", two.chain_ids[-1]: ""}
        assert len(mounts_under(plugin.mounts)) == 3
        plugin.kill()
        plugin.start()
        await _until_answered(client)
        await client.images.delete(one.reference, sync=True)
        assert [info.name for info in await snapshots.list()] == [two.chain_ids[-1]]
        assert len(mounts_under(plugin.mounts)) == 2
        container_id, mounts = await create(client, containerd, two, "test -s /etc/message")
        await client.tasks.create(container_id, mounts)
        waiting = asyncio.create_task(client.tasks.wait(container_id, timeout_s=20))
        await client.tasks.start(container_id)
        assert (await waiting).exit_status == 0
        await remove(client, container_id)
        await client.images.delete(two.reference, sync=True)
    assert mounts_under(plugin.mounts) == []


async def test_adoption_names_the_missing_layers_and_keeps_nothing(
    wired_pair: tuple[Plugin, Containerd], tmp_path: Path
) -> None:
    plugin, containerd = wired_pair
    image = cached_image(plugin, tmp_path, lowest_only=True)
    async with containerd.client() as client:
        assert await adopt_image(client, SNAPSHOTTER, image) == image.chain_ids[1:]
        with pytest.raises(NotFound):
            await client.images.get(image.reference)
        # The end of a lease with `sync` runs a garbage collection.
        await client.leases.delete(await client.leases.create("sweep"), sync=True)
        assert await client.snapshots(SNAPSHOTTER).list() == []
    assert mounts_under(plugin.mounts) == []


async def test_garbage_collection_removes_orphans_and_spares_what_is_leased(
    wired_pair: tuple[Plugin, Containerd],
) -> None:
    _, containerd = wired_pair
    async with containerd.client() as client:
        await client.snapshots(SNAPSHOTTER).prepare("orphan")
        async with client.leased() as leased:
            await leased.snapshots(SNAPSHOTTER).prepare("held")
            await client.leases.delete(await client.leases.create("sweep"), sync=True)
            found = [info.name for info in await client.snapshots(SNAPSHOTTER).list()]
            assert found == ["held"]
        await client.leases.delete(await client.leases.create("sweep"), sync=True)
        assert await client.snapshots(SNAPSHOTTER).list() == []


async def test_another_containerd_namespace_gets_nothing_from_the_cache(
    wired_pair: tuple[Plugin, Containerd], tmp_path: Path
) -> None:
    plugin, containerd = wired_pair
    image = cached_image(plugin, tmp_path)
    other = f"{plugin.namespace}-other"
    async with ContainerdClient(containerd.socket, other) as stranger:
        await stranger.namespaces.ensure(other)
        with pytest.raises(Exception, match="serves"):
            await stranger.snapshots(SNAPSHOTTER).prepare(
                "extract", "", {TARGET_LABEL: image.chain_ids[0]}
            )


async def test_while_the_plugin_is_down_overlayfs_still_works(
    own_pair: tuple[Plugin, Containerd],
) -> None:
    plugin, containerd = own_pair
    async with containerd.client() as client, client.leased() as leased:
        await leased.snapshots(SNAPSHOTTER).prepare("before")
        plugin.kill()
        with pytest.raises(Unavailable):
            await leased.snapshots(SNAPSHOTTER).prepare("during")
        assert (await leased.snapshots("overlayfs").prepare("ordinary"))[0].type == "bind"
        plugin.start()
        await _until_answered(leased)
        assert (await leased.snapshots(SNAPSHOTTER).stat("before")).name == "before"


async def test_lost_plugin_state_is_reported_as_missing_layers(
    own_pair: tuple[Plugin, Containerd], tmp_path: Path
) -> None:
    plugin, containerd = own_pair
    image = cached_image(plugin, tmp_path)
    async with containerd.client() as client:
        assert await adopt_image(client, SNAPSHOTTER, image) == []
        plugin.kill()
        for file in plugin.state.glob("snapshots.db*"):
            file.unlink()
        plugin.start()
        await _until_answered(client)
        # containerd remembers the layers that its snapshotter lost, and says ALREADY_EXISTS.
        assert await adopt_image(client, SNAPSHOTTER, image) == image.chain_ids
        with pytest.raises(AlreadyExists):
            await client.snapshots(SNAPSHOTTER).prepare(
                "extract", "", {TARGET_LABEL: image.chain_ids[0]}
            )
        await client.images.delete(image.reference)
        assert await adopt_image(client, SNAPSHOTTER, image) == []


async def _until_answered(client: ContainerdClient) -> None:
    """containerd's own channel to the plugin connects again after a backoff."""
    async with asyncio.timeout(15):
        while True:
            with contextlib.suppress(Unavailable, NotFound):
                await client.snapshots(SNAPSHOTTER).usage("nothing")
            try:
                await client.snapshots(SNAPSHOTTER).prepare("probe")
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                await client.snapshots(SNAPSHOTTER).remove("probe")
                return
