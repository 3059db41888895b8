"""Model artifacts of a node, from a store that hangs, over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from pathlib import Path

import pytest

from zeropull.errors import Unavailable
from zeropull.nodeagent.disk import NodeDisk
from zeropull.nodeagent.link_share import LinkShare
from zeropull.nodeagent.models import NodeModels
from zeropull.resources.node import NodeConfig
from zeropull.resources.sources import ModelArtifact

BODY = b"weights" * 1000


class Store:
    """Answers one object with ranges; the requests named in `hangs` (0 = the first) never."""

    def __init__(self) -> None:
        self.hangs: set[int] = set()
        self.requests = 0
        self.closed_early = asyncio.Event()
        self.address = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.requests = self.requests, self.requests + 1
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if number in self.hangs:
            await reader.read()
            self.closed_early.set()
        else:
            first, _, last = head.partition("bytes=")[2].partition("\r\n")[0].partition("-")
            part = BODY[int(first) : int(last) + 1]
            writer.write(
                b'HTTP/1.1 206 Partial\r\nConnection: close\r\nETag: "one"\r\n'
                + f"Content-Range: bytes {first}-{int(first) + len(part) - 1}/{len(BODY)}\r\n"
                f"Content-Length: {len(part)}\r\n\r\n".encode()
                + part
            )
        writer.close()


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    found = Store()
    server = await asyncio.start_server(found.answer, "127.0.0.1", 0)
    found.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/model.bin"
    yield found
    server.close()


def node_models(folder: Path, **options: float) -> NodeModels:
    config = NodeConfig(
        instance_id="i-1",
        node_token="token",
        control_socket="",
        disk_dir=str(folder),
        run_dir=str(folder),
        instance_type="ml.test",
        vcpus=1,
        memory_bytes=1 << 30,
        subnet="198.18.0.0/24",
        gateway="198.18.0.1",
        address="198.18.0.2",
        cgroup_parent="/x",
    )

    async def nothing() -> Collection[str]:
        return ()

    disk = NodeDisk(config, nothing, lambda _: None)
    return NodeModels(folder / "models", disk=disk, link=LinkShare(0.2), in_use=tuple, **options)


@pytest.mark.parametrize("hanging", [0, 1])
async def test_a_store_that_hangs_once_is_given_up_and_answers_the_next_attempt(
    store: Store, tmp_path: Path, hanging: int
) -> None:
    store.hangs = {hanging}
    node = node_models(tmp_path, first_byte_s=0.2)
    artifact = ModelArtifact(store.address)
    with pytest.raises(Unavailable, match=r"model\.bin sent nothing for 0\.2 s"):
        await node.ensure(artifact, enable_caching=True, claim=lambda _: None)
    model = await node.ensure(artifact, enable_caching=True, claim=lambda _: None)
    assert (model.path / "model.bin").read_bytes() == BODY
    await node.close()


async def test_a_download_that_nobody_waits_for_ends(store: Store, tmp_path: Path) -> None:
    store.hangs = {1}
    node = node_models(tmp_path)
    work = node.ensure(ModelArtifact(store.address), enable_caching=True, claim=lambda _: None)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await work
    async with asyncio.timeout(10):
        await store.closed_early.wait()
    assert not list((tmp_path / "models").glob("[!.]*"))
    await node.close()


async def test_a_download_goes_on_for_the_copy_that_still_waits(
    store: Store, tmp_path: Path
) -> None:
    node = node_models(tmp_path)
    artifact = ModelArtifact(store.address)
    both = [
        asyncio.create_task(node.ensure(artifact, enable_caching=True, claim=lambda _: None))
        for _ in range(2)
    ]
    await asyncio.sleep(0)
    both[0].cancel()
    assert (await both[1]).path.is_dir()
    await node.close()


async def test_a_copy_that_comes_while_an_abandoned_download_ends_gets_its_own(
    store: Store, tmp_path: Path
) -> None:
    store.hangs = {1}
    node = node_models(tmp_path)
    artifact = ModelArtifact(store.address)
    first = asyncio.create_task(node.ensure(artifact, enable_caching=True, claim=lambda _: None))
    async with asyncio.timeout(20):
        while store.requests < 2:  # noqa: ASYNC110 - the store's own task counts
            await asyncio.sleep(0.005)
    first.cancel()
    await asyncio.sleep(0)  # it goes, and its download is told to end
    model = await node.ensure(artifact, enable_caching=True, claim=lambda _: None)
    assert (model.path / "model.bin").read_bytes() == BODY
    assert first.cancelled()
    await node.close()
