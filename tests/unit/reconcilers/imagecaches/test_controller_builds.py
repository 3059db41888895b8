"""Builds of image caches by the controller: refused and tried again, cancelled and purged."""

from __future__ import annotations

import asyncio
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
from zeropull.layers.pull import pull_layers
from zeropull.oci.images import ResolvedImage
from zeropull.providers.local.disk import collect_directory
from zeropull.reconcilers.endpoint_view import View
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
        self.asked = asyncio.Event()

    async def collect_layer(self, instance_id: str, chain_id: str, into: Path) -> None:
        self.asked.set()

        def collect(stop: threading.Event) -> None:
            if self.held:
                assert stop.wait(60)
            collect_directory(self.layers / chain_id.removeprefix("sha256:"), into, stop)

        await run_stoppable(collect)


class Caches:
    """The controller with an endpoint whose only node has pulled the image."""

    def __init__(self, store: Store, root: Path) -> None:
        self.store, self.now_s = store, 1000.0
        self.image, blobs = image_of([TAR])
        sources: Any = list(blobs)
        pull = pull_layers(
            self.image, [0], sources, root / "node", lambda _: None, open_blob=open_bytes
        )
        asyncio.run(pull)
        self.generations = GenerationStore(root / "caches")
        self.fleet = Fleet(root / "node")
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
        digest = self.image.manifest_digest
        report = ImageReport(digest, complete=True, chain_ids=tuple(self.image.chain_ids))
        self.exchange.take_node_report(NodeReport(NODE, 1, 0.0, 0.0, images=(report,)), 0.0)
        plain = deployment()
        image = DeployedImage("r:1", digest, 0.0)
        variant = replace(plain.variants[0], images=(image,))
        self.endpoint = endpoint(replace(plain, variants=(variant,)))

    async def _image(self, reference: str, digest: str) -> ResolvedImage:
        return self.image

    def round(self, endpoint: Endpoint | None = None, *, instances: bool = True) -> None:
        owner = endpoint or self.endpoint
        assert owner.pending is not None
        node = Instance(
            NODE, owner.account, owner.uid, owner.name, "main", "ml.g5.xlarge",
            owner.pending.deployment_id, InstanceState.RUNNING, "token", 0.0,
        )  # fmt: skip
        self.control.reconcile([View(owner, (node,) if instances else ())], self.now_s)

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
