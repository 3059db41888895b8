"""The clients against real containerds; what the plugin's tests use is not repeated here."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.fixtures.containerds import (
    CURRENT,
    DEBIAN,
    Containerd,
    binary_dir,
    running_containerd,
)
from tests.fixtures.plugin import running_plugin
from zeropull.containerd.client import ContainerdClient
from zeropull.containerd.config import detect_version, parse_version
from zeropull.containerd.images import ImageRecord
from zeropull.containerd.leases import LeaseResource
from zeropull.containerd.snapshots import SnapshotKind
from zeropull.errors import AlreadyExists, Conflict, InvalidInput, NotFound, Unavailable
from zeropull.oci.digests import digest_of
from zeropull.oci.images import Descriptor

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture(scope="module", params=[DEBIAN, CURRENT])
def containerd(request: pytest.FixtureRequest) -> Iterator[Containerd]:
    with (
        running_plugin(f"zptest-{secrets.token_hex(4)}") as plugin,
        running_containerd(request.param, plugin) as containerd,
    ):
        yield containerd


@pytest.fixture
async def client(containerd: Containerd) -> AsyncIterator[ContainerdClient]:
    async with containerd.client() as client, client.leased() as leased:
        yield leased


async def test_version_is_the_binary_s(client: ContainerdClient, containerd: Containerd) -> None:
    answered = parse_version((await client.version()).version)
    assert answered == detect_version(str(binary_dir(containerd.kind) / "containerd"))


async def test_nobody_behind_the_socket_is_unavailable(tmp_path: Path) -> None:
    async with ContainerdClient(tmp_path / "nothing.sock", "x") as client:
        with pytest.raises(Unavailable):
            await client.version(timeout_s=1)


async def test_content_is_written_once_and_labels_are_merged(client: ContainerdClient) -> None:
    for blob in (b"", secrets.token_bytes(3 << 20)):
        digest = digest_of(blob)
        await client.content.write(digest, blob, {"one": "1"})
        await client.content.write(digest, blob, {"two": "2"})
        assert await client.content.read(digest) == blob
        info = await client.content.info(digest)
        assert (info.size, dict(info.labels)) == (len(blob), {"one": "1", "two": "2"})
        info = await client.content.update_labels(digest, {"one": ""})
        assert dict(info.labels) == {"two": "2"}
        assert digest in {found.digest for found in await client.content.list()}
        await client.content.delete(digest)
        with pytest.raises(NotFound):
            await client.content.info(digest)


async def test_content_must_have_its_digest(client: ContainerdClient) -> None:
    with pytest.raises((Conflict, InvalidInput)):
        await client.content.write(digest_of(b"other"), b"these bytes")


async def test_images_are_put_replaced_listed_and_deleted(client: ContainerdClient) -> None:
    name = f"example.test/{secrets.token_hex(4)}:1"
    for blob in (b"first", b"second"):
        await client.content.write(digest_of(blob), blob)
        target = Descriptor(MANIFEST, digest_of(blob), len(blob))
        await client.images.put(ImageRecord(name, target))
        assert (await client.images.get(name)).target == target
    assert [image.name for image in await client.images.list(f"name=={name}")] == [name]
    await client.images.delete(name)
    with pytest.raises(NotFound):
        await client.images.get(name)


async def test_leases_hold_what_is_added(client: ContainerdClient) -> None:
    lease = await client.leases.create(f"lease-{secrets.token_hex(4)}", expires_s=60)
    with pytest.raises(AlreadyExists):
        await client.leases.create(lease)
    blob = secrets.token_bytes(10)
    await client.content.write(digest_of(blob), blob)
    resource = LeaseResource(digest_of(blob), "content")
    await client.leases.add(lease, resource)
    assert await client.leases.resources(lease) == [resource]
    assert lease in await client.leases.list()
    await client.leases.delete(lease)
    assert lease not in await client.leases.list()


async def test_namespaces_are_made_and_deleted(client: ContainerdClient) -> None:
    name = f"zptest-{secrets.token_hex(4)}"
    await client.namespaces.ensure(name)
    await client.namespaces.ensure(name)
    assert name in await client.namespaces.list()
    await client.namespaces.delete(name)
    await client.namespaces.delete(name)
    assert name not in await client.namespaces.list()


async def test_the_overlayfs_snapshotter_is_there_for_the_ordinary_way(
    client: ContainerdClient,
) -> None:
    snapshots = client.snapshots("overlayfs")
    name = secrets.token_hex(4)
    await snapshots.prepare(f"base-{name}")
    await snapshots.commit(f"committed-{name}", f"base-{name}")
    assert (await snapshots.stat(f"committed-{name}")).kind is SnapshotKind.COMMITTED


async def test_what_does_not_exist_is_not_found(client: ContainerdClient) -> None:
    for call in (
        client.containers.get("nothing"),
        client.containers.delete("nothing"),
        client.tasks.get("nothing"),
        client.tasks.wait("nothing", timeout_s=5),
        client.tasks.kill("nothing"),
        client.tasks.delete("nothing"),
        client.images.delete("nothing"),
        client.snapshots("overlayfs").stat("nothing"),
    ):
        with pytest.raises(NotFound):
            await call
    assert await client.containers.list() == []
    assert await client.tasks.list() == []
