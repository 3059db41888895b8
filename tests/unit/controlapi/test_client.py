"""The client against the real control server, over a Unix socket."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from zeropull.controlapi.client import ControlClient
from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.messages import GatewayReport, NodeAssignment, NodeReport, Routes
from zeropull.controlapi.server import ControlServer
from zeropull.errors import AccessDenied, Unavailable

NODE = "i-0123456789abcdef0"


@pytest.fixture
def exchange() -> Exchange:
    return Exchange()


@pytest.fixture
async def socket(exchange: Exchange) -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        server = ControlServer(
            exchange, node_token=lambda _: "node", gateway_token="gate", long_poll_s=0.01
        )
        runner = web.AppRunner(server.app())
        await runner.setup()
        path = Path(folder) / "control.sock"
        await web.UnixSite(runner, str(path)).start()
        yield path
        await runner.cleanup()


async def test_a_node_watches_and_reports(exchange: Exchange, socket: Path) -> None:
    async with ControlClient(socket, "node", instance_id=NODE) as client:
        assert await client.watch_assignment(0) is None
        version = exchange.publish_assignment(NodeAssignment(0, NODE, endpoint="e"), 1.0)
        assignment = await client.watch_assignment(0)
        assert assignment is not None and assignment.endpoint == "e"
        assert await client.watch_assignment(version) is None
        await client.report(NodeReport(NODE, version, 1.0, 1.0))
    assert exchange.nodes[NODE].report.assignment_version == version


async def test_the_gateway_watches_and_reports(exchange: Exchange, socket: Path) -> None:
    async with ControlClient(socket, "gate") as client:
        exchange.publish_routes(Routes(0, region="eu-west-1"), 1.0)
        routes = await client.watch_routes(0)
        assert routes is not None and routes.region == "eu-west-1"
        await client.report_gateway(GatewayReport("g", routes.version, 1.0))
    assert exchange.gateways["g"].report.routes_version == routes.version


async def test_a_wrong_token_is_told_apart_from_no_answer(socket: Path, tmp_path: Path) -> None:
    async with ControlClient(socket, "wrong", instance_id=NODE) as client:
        with pytest.raises(AccessDenied):
            await client.watch_assignment(0)
    async with ControlClient(tmp_path / "none.sock", "node", instance_id=NODE) as client:
        with pytest.raises(Unavailable):
            await client.watch_assignment(0)
