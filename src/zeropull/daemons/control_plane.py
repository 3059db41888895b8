"""The control plane's process: store, AWS API, private API, reconcilers and the provider.

`python -m zeropull.daemons.control_plane --settings R/settings.json`. SIGTERM and SIGINT end
the process and leave the instances running. POST /v1/admin/teardown, or --teardown, ends every
instance.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from aiohttp import web

from zeropull.admin.metrics import ControlPlaneMetrics
from zeropull.admin.server import AdminServer
from zeropull.api import create_api_app, create_api_runner
from zeropull.api.applicationautoscaling import (
    autoscaling_table,
    let_go_of_component,
    let_go_of_endpoint,
    refuse_lost_targets,
)
from zeropull.api.cloudwatch import cloudwatch_table
from zeropull.api.keys import ensure_default_key, write_credentials_file
from zeropull.api.sagemaker import EndpointHooks
from zeropull.api.sagemaker.components import refuse_unfit_update
from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.server import ControlServer
from zeropull.daemons.lost_state import refuse_lost_state, remove_orphaned_caches
from zeropull.daemons.settings_file import read_settings
from zeropull.daemons.supervisor import REFUSAL_FILE
from zeropull.errors import (
    ConfigurationError,
    DiskFull,
    IntegrityError,
    InvalidInput,
    Unavailable,
    ZeropullError,
)
from zeropull.imagecache.generations import GenerationStore
from zeropull.metricstore.store import MetricStore
from zeropull.placement.capacity import Shape
from zeropull.providers.local.delivery import NetworkDelivery
from zeropull.providers.local.loopback_ports import loopback_ports
from zeropull.providers.local.provider import LocalProvider
from zeropull.providers.shapes import shape_of
from zeropull.reconcilers.components.slots import placing_shape
from zeropull.reconcilers.controller import Controller
from zeropull.reconcilers.imagecaches.controller import CacheController
from zeropull.reconcilers.node_engine import NodeEngine
from zeropull.reconcilers.rebooting import boot_id, note_reboot
from zeropull.registry.registries import Registries
from zeropull.resources.components import InferenceComponent
from zeropull.resources.endpoints import Deployment, Endpoint
from zeropull.resources.instance_types import find_type, make_catalog
from zeropull.resources.instances import CopyRecord, Instance, TimelineRecord
from zeropull.resources.settings import Settings
from zeropull.scaling.controller import ScalingController
from zeropull.statestore import Store
from zeropull.statestore.cached_kind import CachedKind
from zeropull.statestore.reserve import DiskReserve
from zeropull.statestore.retention import Retention
from zeropull.telemetry import configure_logging, get_logger

CLOSE_PORTS_S = 30.0  # how often ports of the loopback that nobody needs are closed
SHUTDOWN_S = 0.5  # long polls never end by themselves; their callers ask again

log = get_logger(__name__)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="zeropull-controlplane")
    parser.add_argument("--settings", type=Path, required=True, help="merged settings, JSON")
    parser.add_argument("--teardown", action="store_true", help="end every instance and exit")
    arguments = parser.parse_args(argv)
    try:
        settings = read_settings(arguments.settings)
    except ConfigurationError as error:
        log.error("cannot serve", reason=error.reason)
        return 1
    configure_logging("controlplane", level=settings.serve.log_level)
    if arguments.teardown:
        try:
            asyncio.run(_tear_down_only(settings))
        except (ZeropullError, OSError) as error:
            log.error("not everything could be ended", reason=str(error))
            return 1
        return 0
    try:
        asyncio.run(run(settings))
    except (ConfigurationError, DiskFull, IntegrityError, InvalidInput) as error:
        # Started again it would be the same: whoever waits for the start is told.
        log.error("cannot serve", reason=error.reason)
        (settings.run_dir / REFUSAL_FILE).write_text(error.reason, encoding="utf-8")
        return 1
    return 0


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, or until torn down."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    plane = ControlPlane(settings)
    async with plane.serving():
        stopping: asyncio.Future[object] = asyncio.ensure_future(stop.wait())
        ended: asyncio.Future[object] = asyncio.ensure_future(plane.ended.wait())
        await asyncio.wait({stopping, ended}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        ended.cancel()
        if plane.failure is not None:
            raise plane.failure


class ControlPlane:
    """Everything put together; `serving` is entered once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store.open(settings.database, reserve=DiskReserve(settings.reserve_file))
        self.metrics = MetricStore(
            settings.metrics_database, max_per_account=settings.metrics.max_per_account
        )
        self.exchange = Exchange()
        self.scaling = ScalingController(
            self.store, self.metrics, self.exchange, settings.scaling, time.time
        )
        self.types = make_catalog(settings.instance_types)
        self.provider = LocalProvider(
            settings.fleet,
            settings.state_dir,
            settings.run_dir,
            log_level=settings.serve.log_level,
            delivery=NetworkDelivery(settings) if settings.fleet.delivery == "network" else None,
        )
        self.registries = Registries(settings)
        self.generations = GenerationStore(
            settings.state_dir / "caches", budget_bytes=settings.image_cache.budget_bytes
        )
        self.ended = asyncio.Event()  # a reconciler has ended by itself: `failure` says why
        self.failure: BaseException | None = None
        self._allowed: set[int] = set()
        self._components = CachedKind(self.store, InferenceComponent, lambda c: c.endpoint_uid)
        self._endpoints = CachedKind(self.store, Endpoint)
        self._instances = CachedKind(self.store, Instance)
        self._work: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """While entered, all sockets answer and the reconcilers run."""
        settings = self.settings
        refuse_lost_state(settings, self.store)
        key, is_new = ensure_default_key(self.store, settings.serve.account, time.time())
        try:
            write_credentials_file(settings.state_dir / "credentials", key, settings.serve.region)
        except OSError as error:  # the key is in the state: it works without the file
            log.error("credentials not written", error=str(error))
        log.info("default key", access_key_id=key.access_key_id, is_new=is_new)
        await asyncio.to_thread(self.generations.sweep)  # before anything is built
        note_reboot(self.store, boot_id())  # before anybody can ask what serves
        await asyncio.to_thread(remove_orphaned_caches, self.store, self.generations)
        try:
            async with self.registries.client, contextlib.AsyncExitStack() as servers:
                await self._serve_control(servers)
                await self._serve_api(servers)
                await self._serve_admin(servers)
                self.provider.prepare()
                self._work = asyncio.create_task(self._reconcile(), name="reconcilers")
                self._work.add_done_callback(self._work_ended)
                log.info("control plane serves", state=str(settings.state_dir))
                try:
                    yield
                finally:
                    await self._stop_work()
        finally:
            await self.provider.close()
            self.metrics.close()
            self.store.close()

    async def tear_down(self) -> None:
        """End every instance; endpoints stay in the store and come back at the next start."""
        await self._stop_work()
        known = [s.document for s in self.store.select(Instance)]
        log.info("tearing down", instances=len(known))
        # One that cannot be ended yet must not keep the others from it.
        ends = (self.provider.terminate(instance.instance_id) for instance in known)
        outcomes = await asyncio.gather(*ends, return_exceptions=True)
        failed = [error for error in outcomes if isinstance(error, BaseException)]
        try:
            await self.provider.sweep(())
        except (ZeropullError, OSError) as error:
            failed.append(error)
        left = {each.instance_id for each in await self.provider.list_instances()}
        self._forget([each for each in known if each.instance_id not in left])
        for each in failed:
            log.error("an instance cannot be ended yet", reason=str(each))
        if failed:
            raise Unavailable(
                f"{len(left)} instances cannot be ended yet, the others are: {failed[0]}"
            )

    def _forget(self, ended: Sequence[Instance]) -> None:
        """Instances that are gone, with their copies; launches under way have ended now."""
        now_s = time.time()
        with self.store.transaction():
            for instance in ended:
                for stored in self.store.select(CopyRecord, instance_id=instance.instance_id):
                    self.store.delete(CopyRecord, stored.document.copy_id)
                self.store.delete(Instance, instance.instance_id)
            for timeline in (s.document for s in self.store.select(TimelineRecord)):
                if timeline.ended_s is None:
                    self.store.put(replace(timeline, ended_s=now_s))

    async def _reconcile(self) -> None:
        """Every loop of the control plane; the end of one is the end of all."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._controller().run(), name="controller")
            tasks.create_task(self.scaling.run(), name="scaling")
            tasks.create_task(self._close_loopback(), name="loopback ports")
            tasks.create_task(self._retention().run(), name="retention")

    def _retention(self) -> Retention:
        return Retention(self.store, self.settings.endpoints.timeline_launches, time.time)

    def _controller(self) -> Controller:
        settings = self.settings
        caches = CacheController(
            self.store,
            self.exchange,
            self.provider,
            self.generations,
            image=self.registries.image,
            has_accelerators=lambda name: name in self.types and self.types[name].accelerators > 0,
            enabled=settings.image_cache.enabled,
            all_instance_types=settings.image_cache.all_instance_types,
            clock=time.time,
        )
        engine = NodeEngine(
            self.store,
            self.exchange,
            self.provider,
            caches,
            settings,
            shape=lambda name: shape_of(find_type(self.types, name)),
            registry_access=self.registries.access_for,
            open_ways=self._open_loopback,
        )
        return Controller(
            self.store,
            self.exchange,
            engine,
            caches,
            settings,
            resolve=self.registries.resolve,
            shape_of=self._component_shape,
        )

    async def _open_loopback(self, endpoint: Endpoint) -> None:
        """Registries and model stores on this host's loopback are within the nodes' reach."""
        for port in self._loopback_ports(endpoint) - self._allowed:
            await self.provider.allow_loopback_port(port)
            self._allowed.add(port)

    def _loopback_ports(self, endpoint: Endpoint) -> frozenset[int]:
        components = self._components.grouped(endpoint.uid)
        return loopback_ports(endpoint, self.settings.buckets, components, self.settings.registries)

    async def _close_loopback(self) -> None:
        """Ports that no endpoint needs any more are out of the nodes' reach again."""
        while True:
            needed: set[int] = set()
            for endpoint in self._endpoints.all():
                needed |= self._loopback_ports(endpoint)
            try:
                await self.provider.keep_loopback_ports(needed)
                self._allowed &= needed
            except (ZeropullError, OSError) as error:
                log.warning("ports of the loopback stay open", reason=str(error))
            await asyncio.sleep(CLOSE_PORTS_S)

    def _check_update(self, endpoint: Endpoint, deployment: Deployment) -> None:
        refuse_lost_targets(self.store, endpoint, deployment)
        refuse_unfit_update(self.store, self._component_shape, endpoint, deployment)

    def _component_shape(self, instance_type: str) -> Shape | None:
        found = self.types.get(instance_type)
        return placing_shape(shape_of(found)) if found is not None else None

    def _node_token(self, instance_id: str) -> str | None:
        found = self._instances.get(instance_id)
        return found.node_token if found else None

    async def _serve_control(self, servers: contextlib.AsyncExitStack) -> None:
        control = ControlServer(
            self.exchange,
            node_token=self._node_token,
            gateway_token=self.settings.gateway_token,
        )
        runner = web.AppRunner(control.app(), access_log=None, shutdown_timeout=SHUTDOWN_S)
        await _listen(servers, runner, self.settings.control_socket)

    async def _serve_admin(self, servers: contextlib.AsyncExitStack) -> None:
        admin = AdminServer(
            self.store, self.exchange, self.settings, self.tear_down, self.scaling.decisions
        )
        runner = web.AppRunner(admin.app(), access_log=None, shutdown_timeout=SHUTDOWN_S)
        await _listen(servers, runner, self.settings.admin_socket)

    async def _serve_api(self, servers: contextlib.AsyncExitStack) -> None:
        app = create_api_app(
            self.store,
            region=self.settings.serve.region,
            instance_types=self.types,
            tables=[autoscaling_table(self.store), cloudwatch_table(self.store, self.metrics)],
            metrics=ControlPlaneMetrics(self.store, self.exchange).render,
            with_components=True,
            component_shape=self._component_shape,
            on_component_delete=partial(let_go_of_component, self.store),
            hooks=EndpointHooks(
                before_update=self._check_update,
                on_delete=partial(let_go_of_endpoint, self.store),
            ),
        )
        await _listen(servers, create_api_runner(app), self.settings.api_socket)

    async def _stop_work(self) -> None:
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)

    def _work_ended(self, work: asyncio.Task[None]) -> None:
        if not work.cancelled():
            self.failure = work.exception()
            self.ended.set()


async def _listen(servers: contextlib.AsyncExitStack, runner: web.AppRunner, path: Path) -> None:
    await runner.setup()
    servers.push_async_callback(runner.cleanup)
    path.unlink(missing_ok=True)  # left by a process that was killed; the store's lock is ours
    await web.UnixSite(runner, str(path)).start()
    path.chmod(0o600)


async def _tear_down_only(settings: Settings) -> None:
    plane = ControlPlane(settings)
    try:
        await plane.tear_down()
    finally:
        await plane.provider.close()
        plane.metrics.close()
        plane.store.close()


if __name__ == "__main__":
    raise SystemExit(main())
