"""References resolved at the real registry."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.images import Entry, make_image, make_index, push_image
from tests.fixtures.registry import PASSWORD, USERNAME, Registry, running_registry
from tests.fixtures.relay import free_port
from zeropull.errors import AccessDenied, ImageError, IntegrityError, NotFound, Unavailable
from zeropull.registry import RegistryClient, open_blob
from zeropull.registry.credentials import load_docker_config
from zeropull.resources.sources import RegistryAccess


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with running_registry() as running:
        yield running


@pytest.fixture(scope="module")
def private() -> Iterator[Registry]:
    with running_registry(password_file=True) as running:
        yield running


def anonymous(host: str) -> None:
    return None


@pytest.mark.parametrize("docker", [False, True])
async def test_a_tag_of_an_index_becomes_one_platforms_image(
    registry: Registry, docker: bool
) -> None:
    amd = make_image([[Entry("a", b"amd")], [Entry("b")]], docker=docker)
    arm = make_image([[Entry("a", b"arm")]], docker=docker, architecture="arm64")
    push_image(registry.direct, "team/app", "v1", make_index([arm, amd], docker=docker))
    async with RegistryClient(anonymous) as client:
        found = await client.resolve(f"{registry.address}/team/app:v1")
        other = await client.resolve(f"{registry.address}/team/app:v1", platform="linux/arm64/v8")
    assert found.manifest_digest == amd.digest
    assert found.manifest == amd.manifest.content
    assert found.config == amd.config.content
    assert list(found.diff_ids) == amd.diff_ids
    assert [layer.size for layer in found.layers] == [layer.size for layer in amd.layers]
    assert other.manifest_digest == arm.digest


async def test_a_pinned_digest_stays_when_the_tag_moves(registry: Registry) -> None:
    first, second = make_image([[Entry("v", b"1")]]), make_image([[Entry("v", b"2")]])
    reference = f"{registry.address}/moving:latest"
    push_image(registry.direct, "moving", "latest", first)
    async with RegistryClient(anonymous) as client:
        before = await client.resolve(reference)
        push_image(registry.direct, "moving", "latest", second)
        after = await client.resolve(reference)
        pinned = await client.fetch_manifest_image(reference, before.manifest_digest)
    assert (before.manifest_digest, after.manifest_digest) == (first.digest, second.digest)
    assert pinned.manifest_digest == first.digest


async def test_unknown_images_are_not_found(registry: Registry) -> None:
    async with RegistryClient(anonymous) as client:
        with pytest.raises(NotFound, match="nowhere/app:v9 is not in registry"):
            await client.resolve(f"{registry.address}/nowhere/app:v9")


async def test_another_architecture_is_an_image_error(registry: Registry) -> None:
    push_image(registry.direct, "arm", "v1", make_image([[Entry("a")]], architecture="arm64"))
    async with RegistryClient(anonymous) as client:
        with pytest.raises(ImageError, match="linux/arm64"):
            await client.resolve(f"{registry.address}/arm:v1")


async def test_damaged_configs_are_noticed(registry: Registry) -> None:
    image = make_image([[Entry("a", b"to be damaged")]])
    push_image(registry.direct, "damaged", "v1", image)
    path = registry.blob_path(image.config.digest)
    path.write_bytes(path.read_bytes().replace(b"linux", b"minix"))
    async with RegistryClient(anonymous) as client:
        with pytest.raises(IntegrityError, match="config"):
            await client.resolve(f"{registry.address}/damaged:v1")


async def test_a_registry_that_is_down_is_unavailable() -> None:
    port = free_port()
    async with RegistryClient(anonymous) as client:
        with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{port} .*Connection refused"):
            await client.resolve(f"127.0.0.1:{port}/a:v1")


async def test_a_private_registry_wants_credentials(private: Registry) -> None:
    push_image(
        private.direct, "p", "v", make_image([[Entry("a")]]), credentials=private.credentials
    )
    reference = f"{private.address}/p:v"
    async with RegistryClient(anonymous) as client:
        with pytest.raises(AccessDenied, match="wants credentials for p"):
            await client.resolve(reference)
    wrong = RegistryAccess(private.address, username=USERNAME, password="guess")
    async with RegistryClient(lambda host: wrong) as client:
        with pytest.raises(AccessDenied, match="refuses user tester"):
            await client.resolve(reference)


async def test_a_docker_config_opens_a_private_registry(private: Registry, tmp_path: Path) -> None:
    content = b"private" * 1000
    image = make_image([[Entry("a", content)]], compression="none")
    push_image(private.direct, "q", "v", image, credentials=private.credentials)
    auth = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"auths": {private.address: {"auth": auth}}}))
    async with RegistryClient(load_docker_config(file)) as client:
        found = await client.resolve(f"{private.address}/q:v")
        source = await client.blob_source(found.reference, found.layers[0])
    with open_blob(pickle.loads(pickle.dumps(source))) as parts:
        digest = hashlib.sha256(b"".join(bytes(part) for part in parts)).hexdigest()
    assert f"sha256:{digest}" == image.layers[0].digest


async def test_a_blob_that_is_cut_off_again_and_again_arrives_whole(registry: Registry) -> None:
    content = hashlib.shake_256(b"long").digest(3_000_000)
    image = make_image([[Entry("a", content)]], compression="none")
    push_image(registry.direct, "long", "v", image)
    reference = f"{registry.address}/long:v"
    async with RegistryClient(anonymous) as client:
        found = await client.resolve(reference)
        source = await client.blob_source(reference, found.layers[0])
    registry.relay.drop_after = 700_000
    try:
        with open_blob(source, connections=3, part_bytes=1 << 20) as parts:
            digest = hashlib.sha256(b"".join(bytes(part) for part in parts)).hexdigest()
    finally:
        registry.relay.drop_after = None
    assert f"sha256:{digest}" == found.layers[0].digest


async def test_a_set_stop_event_ends_the_stream(registry: Registry) -> None:
    image = make_image([[Entry("a", bytes(4_000_000))]], compression="none")
    push_image(registry.direct, "stopped", "v", image)
    stop = threading.Event()
    async with RegistryClient(anonymous) as client:
        found = await client.resolve(f"{registry.address}/stopped:v")
        source = await client.blob_source(found.reference, found.layers[0])
    with open_blob(source, part_bytes=1 << 16, stop=stop) as parts:
        next(parts)
        stop.set()
        with pytest.raises(Unavailable, match="stopped"):
            for _ in parts:
                pass


async def test_a_missing_blob_is_not_found(registry: Registry) -> None:
    image = make_image([[Entry("a", b"gone soon")]])
    push_image(registry.direct, "gone", "v", image)
    async with RegistryClient(anonymous) as client:
        found = await client.resolve(f"{registry.address}/gone:v")
        source = await client.blob_source(found.reference, found.layers[0])
    registry.blob_path(image.layers[0].digest).unlink()
    with open_blob(source) as parts, pytest.raises(NotFound, match="push the image again"):
        next(parts)
