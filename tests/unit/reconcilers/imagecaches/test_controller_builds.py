"""Builds of image caches by the controller: refused and tried again, cancelled and purged."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.layers import image_of, member, open_bytes, tar_of
from tests.unit.reconcilers.endpoint_world import deployment, endpoint
from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.messages import ImageReport, NodeReport
from zeropull.imagecache.generations import GenerationStore
from zeropull.imagecache.layout import generation_layer
from zeropull.layers.layout import layer_directory
from zeropull.layers.pull import pull_layers
from zeropull.layers.verify import verify_blocks
from zeropull.oci.images import ResolvedImage
from zeropull.providers.local.disk import collect_directory
from zeropull.reconcilers.endpoint_view import View
from zeropull.reconcilers.imagecaches.building import REBUILD_DELAY_S
from zeropull.reconcilers.imagecaches.controller import CacheController
from zeropull.reconcilers.imagecaches.planning import RETRY
from zeropull.resources.endpoints import DeployedImage, Endpoint, EndpointStatus
from zeropull.resources.image_caches import CacheState, GenerationState, ImageCacheRecord
from zeropull.resources.instances import Instance, InstanceState
from zeropull.statestore import Store
from zeropull.stopping import run_stoppable

TAR = tar_of(member("file", data=b"l" * 300_000))
NODE = "i-" + "0" * 17


class Fleet:
    """One node with a layer store; `held`: its layers do not come until somebody is stopped."""

    def __init__(self, layers: Path) -> None:
        self.layers = layers
        self.held = False
        self.others: dict[str, Path] = {}  # layer stores of further nodes
        self.asked = asyncio.Event()

    async def collect_layer(self, instance_id: str, chain_id: str, into: Path) -> None:
        self.asked.set()

        def collect(stop: threading.Event) -> None:
            if self.held:
                assert stop.wait(60)
            layers = self.others.get(instance_id, self.layers)
            collect_directory(layers / chain_id.removeprefix("sha256:"), into, stop)

        await run_stoppable(collect)


class Caches:
    """The controller with an endpoint whose only node has pulled the image."""

    def __init__(self, store: Store, root: Path) -> None:
        self.store, self.now_s = store, 1000.0
        self.image, blobs = image_of([TAR])
        self.sources: Any = list(blobs)
        self.fleet = Fleet(root / "node")
        asyncio.run(self.pull())
        self.generations = GenerationStore(root / "caches")
        self.exchange = Exchange()
        provider: Any = self.fleet
        self.control = CacheController(
            store,
            self.exchange,
            provider,
            self.generations,
            image=self._image,
            has_accelerators=lambda name: True,
            enabled=True,
            all_instance_types=True,
            clock=lambda: self.now_s,
        )
        self.report_from(NODE)
        plain = deployment()
        image = DeployedImage("r:1", self.image.manifest_digest, 0.0)
        variant = replace(plain.variants[0], images=(image,))
        self.endpoint = endpoint(replace(plain, variants=(variant,)))

    async def _image(self, reference: str, digest: str) -> ResolvedImage:
        return self.image

    async def pull(self) -> None:
        """As the node does what is missing in its store."""
        await pull_layers(
            self.image,
            [0],
            self.sources,
            self.fleet.layers,
            lambda _: None,
            open_blob=open_bytes,
        )

    def report_from(self, node: str) -> None:
        """The node has the whole image."""
        digest, chain_ids = self.image.manifest_digest, tuple(self.image.chain_ids)
        report = ImageReport(digest, complete=True, chain_ids=chain_ids)
        self.exchange.take_node_report(NodeReport(node, 1, 0.0, 0.0, images=(report,)), 0.0)

    def round(
        self,
        endpoint: Endpoint | None = None,
        *,
        instances: bool = True,
        others: tuple[str, ...] = (),
    ) -> None:
        owner = endpoint or self.endpoint
        nodes = tuple(self._instance(each, owner) for each in (NODE, *others))
        self.control.reconcile([View(owner, nodes if instances else ())], self.now_s)

    def suspects(self) -> frozenset[str]:
        return self.control.suspects_of(self._instance(NODE, self.endpoint))

    def _instance(self, node: str, owner: Endpoint) -> Instance:
        assert owner.pending is not None
        return Instance(
            node, owner.account, owner.uid, owner.name, "main", "ml.g5.xlarge",
            owner.pending.deployment_id, InstanceState.RUNNING, "token", 0.0,
        )  # fmt: skip

    async def settle(self) -> None:
        async with asyncio.timeout(60):
            await self.control._tasks.wait()

    @property
    def record(self) -> ImageCacheRecord:
        return self.store.require(ImageCacheRecord, self.endpoint.uid).document


@pytest.fixture
def caches(tmp_path: Path) -> Iterator[Caches]:
    with Store.open(tmp_path / "store.db") as store:
        yield Caches(store, tmp_path)


def test_a_cache_without_room_is_built_once_there_is_room_again(caches: Caches) -> None:
    async def scenario() -> None:
        caches.generations.budget_bytes = 1000
        delays = []
        for _ in range(3):
            caches.round()
            await caches.settle()
            [refused] = caches.record.generations
            assert refused.state is GenerationState.REFUSED
            assert "of the budget's 1000 bytes" in refused.message
            delays.append(refused.retry_s - caches.now_s)
            caches.now_s = refused.retry_s - 1
            caches.round()
            assert not caches.control._tasks, "not before its time"
            caches.now_s = refused.retry_s
        assert delays == [RETRY.after(failures) for failures in (1, 2, 3)]
        caches.generations.budget_bytes = None
        caches.round()
        await caches.settle()
        [published] = caches.record.generations
        assert published.state is GenerationState.PUBLISHED
        assert published.message == ""

    asyncio.run(scenario())


def test_a_deletion_stops_the_build_and_purges_at_once(caches: Caches) -> None:
    async def scenario() -> None:
        caches.fleet.held = True
        caches.round()
        async with asyncio.timeout(60):
            await caches.fleet.asked.wait()
        deleting = replace(caches.endpoint, status=EndpointStatus.DELETING)
        caches.round(deleting)  # its instances are still there
        await caches.settle()
        assert not list(caches.generations.root.glob("*/staging/*"))
        caches.round(deleting, instances=False)
        await caches.settle()
        assert caches.record.state is CacheState.PURGED
        assert not list(caches.generations.root.iterdir())

    asyncio.run(scenario())


def test_a_cancelled_build_has_ended_its_threads(caches: Caches) -> None:
    async def scenario() -> None:
        caches.fleet.held = True
        caches.round()
        async with asyncio.timeout(60):
            await caches.fleet.asked.wait()
        await caches.control.close()
        assert not list(caches.generations.root.glob("*/staging/*"))
        assert caches.generations.generations(caches.endpoint.uid) == []

    asyncio.run(scenario())


def flip_a_bit(layer: Path) -> None:
    """On the disk: in the same inode."""
    with (layer / "data.erofs").open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))


def test_a_damaged_layer_of_a_node_becomes_no_part_of_a_generation(caches: Caches) -> None:
    async def scenario() -> None:
        [chain_id] = caches.image.chain_ids
        layer = layer_directory(caches.fleet.layers, chain_id)
        flip_a_bit(layer)
        caches.round()
        await caches.settle()
        assert caches.record.newest_published is None
        assert not list(caches.generations.root.glob("*/staging/*"))
        assert caches.suspects() == {chain_id}
        # The node finds it damaged as well, and pulls it again.
        shutil.rmtree(layer)
        await caches.pull()
        caches.now_s += REBUILD_DELAY_S
        caches.round()
        await caches.settle()
        published = caches.record.newest_published
        assert published is not None
        verify_blocks(generation_layer(Path(published.path), chain_id))
        assert caches.suspects() == set()

    asyncio.run(scenario())


def test_a_layer_that_is_damaged_on_one_node_comes_from_another(
    caches: Caches, tmp_path: Path
) -> None:
    async def scenario() -> None:
        [chain_id] = caches.image.chain_ids
        good = tmp_path / "other"
        shutil.copytree(caches.fleet.layers, good)
        flip_a_bit(layer_directory(caches.fleet.layers, chain_id))
        other = "i-" + "f" * 17
        caches.fleet.others[other] = good
        caches.report_from(other)
        caches.round(others=(other,))
        await caches.settle()
        assert caches.record.newest_published is not None
        assert caches.suspects() == {chain_id}

    asyncio.run(scenario())
