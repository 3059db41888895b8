"""The engine of nodes, by the suite of all engines: real instances, node agents and containers."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from tests.fixtures.engine_suite import EngineSuite, Stage
from tests.fixtures.images import push_image
from tests.fixtures.registry import Registry, running_registry
from tests.fixtures.server_image import python_server_image
from tests.unit.reconcilers.endpoint_world import deployment, endpoint
from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.server import ControlServer
from zeropull.imagecache.generations import GenerationStore
from zeropull.providers.local import LocalProvider
from zeropull.providers.local.loopback_ports import loopback_ports
from zeropull.providers.protocol import MachineShape
from zeropull.reconcilers.imagecaches.controller import CacheController
from zeropull.reconcilers.node_engine import NodeEngine
from zeropull.resources.endpoints import DeployedImage, Endpoint
from zeropull.resources.instances import Instance
from zeropull.resources.settings import FleetSettings, ServeSettings, Settings
from zeropull.statestore import Store

if os.geteuid() != 0:
    pytest.skip("needs root", allow_module_level=True)

CAPACITY = 2


@pytest.fixture(scope="module")
def image() -> Iterator[tuple[Registry, str]]:
    with running_registry() as registry:
        digest = push_image(registry.address, "server", "1", python_server_image())
        yield registry, digest


class TestNodeEngine(EngineSuite):
    @pytest.fixture
    async def stage(self, image: tuple[Registry, str], tmp_path: Path) -> AsyncIterator[Stage]:
        registry, digest = image
        run_dir = Path("/run/zeropull") / f"t{os.urandom(4).hex()}"
        run_dir.mkdir(parents=True)
        state = tmp_path / "state"
        state.mkdir()
        settings = Settings(
            serve=ServeSettings(state_dir=str(state), run_dir=str(run_dir)),
            fleet=FleetSettings(max_instances=CAPACITY),
        )
        provider = LocalProvider(settings.fleet, state, run_dir)
        try:
            async with _node_engine(settings, provider) as (engine, store):

                def keep(instance: Instance) -> None:
                    store.put(instance)

                yield Stage(engine, _endpoint(registry, digest), keep, CAPACITY)
        finally:
            await provider.sweep(())
            await provider.close()
            shutil.rmtree(run_dir)


@contextlib.asynccontextmanager
async def _node_engine(
    settings: Settings, provider: LocalProvider
) -> AsyncIterator[tuple[NodeEngine, Store]]:
    """With the private API at which its nodes watch and report."""
    exchange = Exchange()
    with Store.open(settings.database) as store:

        def node_token(instance_id: str) -> str | None:
            stored = store.get(Instance, instance_id)
            return stored.document.node_token if stored else None

        async def open_ways(owner: Endpoint) -> None:
            for port in loopback_ports(owner, {}):
                await provider.allow_loopback_port(port)

        caches = CacheController(
            store,
            exchange,
            provider,
            GenerationStore(settings.state_dir / "caches"),
            image=None,  # type: ignore[arg-type]  # without a cache nobody asks for it
            has_accelerators=lambda name: False,
            enabled=False,
            all_instance_types=False,
            clock=lambda: 0.0,
        )
        engine = NodeEngine(
            store,
            exchange,
            provider,
            caches,
            settings,
            shape=lambda name: MachineShape(name, 1, 1 << 30),
            registry_access=lambda reference: None,
            open_ways=open_ways,
        )
        server = ControlServer(exchange, node_token=node_token, gateway_token="")
        runner = web.AppRunner(server.app(), shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(settings.control_socket)).start()
        try:
            yield engine, store
        finally:
            await runner.cleanup()


def _endpoint(registry: Registry, digest: str) -> Endpoint:
    plain = deployment(image=f"{registry.address}/server:1")
    variant = plain.variants[0]
    images = (DeployedImage(variant.containers[0].image, digest, 0.0),)
    return endpoint(None, replace(plain, variants=(replace(variant, images=images),)))
