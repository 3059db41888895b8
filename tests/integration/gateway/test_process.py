"""The gateway's process with a real control server: routes in, reports out, kills survived."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.server import ControlServer
from zeropull.resources.settings import GatewaySettings, ServeSettings, Settings

from .harness import Client, Received, Writer, answer, container, copy, routes


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="zpgw-") as name:
        yield Path(name)


@contextlib.asynccontextmanager
async def control_plane(run_dir: Path, exchange: Exchange) -> AsyncIterator[None]:
    server = ControlServer(
        exchange, node_token=lambda _: None, gateway_token="token", long_poll_s=0.5
    )
    runner = web.AppRunner(server.app(), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(run_dir / "control.sock")).start()
        yield
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def process(run_dir: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    settings = Settings(
        serve=ServeSettings(port=0, state_dir=str(run_dir), run_dir=str(run_dir)),
        gateway=GatewaySettings(verify_signatures=False, stop_grace_s=5.0),
        gateway_token="token",
    )
    (run_dir / "settings.json").write_bytes(msgspec.json.encode(settings))
    (run_dir / "address").unlink(missing_ok=True)
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "zeropull.daemons.gateway"),
        *("--settings", str(run_dir / "settings.json")),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(30):
            while not (run_dir / "address").exists():  # noqa: ASYNC110 - a file has no event
                await asyncio.sleep(0.02)
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


async def connect(run_dir: Path) -> Client:
    host, port = (run_dir / "address").read_text().strip().rsplit(":", 1)
    return Client(*await asyncio.open_connection(host, int(port)))


async def reported(exchange: Exchange, version: int) -> None:
    async with asyncio.timeout(20):
        while not any(
            received.report.routes_version == version for received in exchange.gateways.values()
        ):
            exchange.reported.clear()
            await exchange.reported.wait()


async def kept(run_dir: Path) -> None:
    """The routes are written beside the report that acknowledges them, maybe after it."""
    async with asyncio.timeout(20):
        while not (run_dir / "routes.json").exists():  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.02)


async def test_routes_arrive_and_every_request_is_reported(run_dir: Path) -> None:
    exchange = Exchange()
    async with container() as model, control_plane(run_dir, exchange), process(run_dir):
        version = exchange.publish_routes(routes(copy("1", model.port)), 1.0)
        await reported(exchange, version)
        client = await connect(run_dir)
        for _ in range(25):
            assert (await client.call(b"x")).status == 200
        async with asyncio.timeout(10):
            invocations = 0
            while invocations < 25:
                await asyncio.sleep(0.05)
                readings = exchange.take_readings()
                invocations += sum(r.invocations for r in readings if r.copy_id == "1")
        assert invocations == 25
        (received,) = exchange.gateways.values()
        assert received.report.in_flight == {"1": 0}
        assert received.report.waiting == ()
        assert received.report.first_response_s["1"] >= received.report.routed_at_s["1"]
        client.close()


async def test_killed_with_the_control_plane_away_it_serves_again_at_once(run_dir: Path) -> None:
    exchange = Exchange()
    async with container() as model:
        async with process(run_dir) as first:
            async with control_plane(run_dir, exchange):
                version = exchange.publish_routes(routes(copy("1", model.port)), 1.0)
                await reported(exchange, version)
                await kept(run_dir)
            client = await connect(run_dir)
            assert (await client.call(b"control plane gone")).status == 200
            first.kill()
            await first.wait()
        assert (run_dir / "routes.json").stat().st_mode & 0o777 == 0o600
        async with process(run_dir):
            client = await connect(run_dir)
            assert (await client.call(b"again")).body == b"again"
            client.close()


async def test_a_stop_lets_requests_in_flight_finish(run_dir: Path) -> None:
    exchange, gate = Exchange(), asyncio.Event()

    async def behave(request: Received, writer: Writer) -> None:
        await gate.wait()
        await answer(writer, request.body)

    async with (
        container(behave) as model,
        control_plane(run_dir, exchange),
        process(run_dir) as running,
    ):
        await reported(exchange, exchange.publish_routes(routes(copy("1", model.port)), 1.0))
        client, idle = await connect(run_dir), await connect(run_dir)
        client.send(b"x")
        await asyncio.wait_for(model.arrived.acquire(), 5)
        running.send_signal(signal.SIGTERM)
        assert await idle.reader.read() == b""  # closed: nothing was asked there
        gate.set()
        assert (await client.receive()).body == b"x"
        assert await asyncio.wait_for(running.wait(), 10) == 0


async def test_a_control_plane_whose_clock_was_set_back_is_followed_at_once(run_dir: Path) -> None:
    async with container() as model, process(run_dir):
        before = Exchange()
        async with control_plane(run_dir, before):
            late = before.publish_routes(routes(copy("1", model.port)), 7200.0)
            await reported(before, late)
        after = Exchange()
        async with control_plane(run_dir, after):
            early = after.publish_routes(routes(copy("2", model.port)), 3600.0)
            assert early < late
            await reported(after, early)
            client = await connect(run_dir)
            assert (await client.call(b"x")).status == 200
            client.close()
