"""The private API as its clients see it, over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.messages import (
    CopyReport,
    CopyState,
    GatewayReport,
    NodeAssignment,
    NodeReport,
    Routes,
)
from zeropull.controlapi.server import ControlServer

ONE, TWO = "i-" + "1" * 17, "i-" + "2" * 17
BEARER = {"Authorization": "Bearer secret-one"}

Client = TestClient[web.Request, web.Application]


@pytest.fixture
def exchange() -> Exchange:
    return Exchange()


@pytest.fixture
async def client(exchange: Exchange) -> AsyncIterator[Client]:
    tokens = {ONE: "secret-one", TWO: "secret-two"}
    server = ControlServer(
        exchange,
        node_token=tokens.get,
        gateway_token="gate",
        clock=lambda: 100.0,
        long_poll_s=0.05,
    )
    async with TestClient(TestServer(server.app())) as client:
        yield client


def report(
    instance_id: str = ONE, state: CopyState = CopyState.HEALTHY, sent: float = 1.0
) -> bytes:
    copies = (CopyReport("c-1", state),)
    return msgspec.json.encode(NodeReport(instance_id, 1, sent, 0.0, copies))


async def test_a_node_sees_its_own_assignment_and_nobody_elses(
    client: Client, exchange: Exchange
) -> None:
    exchange.publish_assignment(NodeAssignment(0, ONE, endpoint="mine"), 1.0)
    exchange.publish_assignment(NodeAssignment(0, TWO, endpoint="other"), 1.0)
    own = await client.get(f"/v1/nodes/{ONE}/assignment?since=0", headers=BEARER)
    assert own.status == 200
    assert (await own.json())["endpoint"] == "mine"
    other = await client.get(f"/v1/nodes/{TWO}/assignment?since=0", headers=BEARER)
    assert other.status == 401
    unknown = await client.get("/v1/nodes/i-unknown/assignment?since=0", headers=BEARER)
    assert unknown.status == 401


async def test_a_long_poll_is_answered_at_once_when_something_is_published(
    exchange: Exchange,
) -> None:
    watch = asyncio.create_task(exchange.watch_assignment(ONE, 0, 30.0))
    await asyncio.sleep(0)
    exchange.publish_assignment(NodeAssignment(0, ONE), 2.0)
    answer = await asyncio.wait_for(watch, 1.0)
    assert answer is not None
    assert answer.version == 2000


async def test_a_long_poll_without_news_ends_with_204(client: Client) -> None:
    answer = await client.get(f"/v1/nodes/{ONE}/assignment?since=7", headers=BEARER)
    assert answer.status == 204


def test_an_equal_assignment_keeps_its_version(exchange: Exchange) -> None:
    first = exchange.publish_assignment(NodeAssignment(0, ONE, endpoint="e"), 5.0)
    assert exchange.publish_assignment(NodeAssignment(0, ONE, endpoint="e"), 9.0) == first
    assert exchange.publish_assignment(NodeAssignment(0, ONE, endpoint="f"), 9.0) > first


def test_versions_grow_even_when_the_clock_goes_back(exchange: Exchange) -> None:
    first = exchange.publish_routes(Routes(0), 5.0)
    assert exchange.publish_routes(Routes(0, region="eu-west-1"), 1.0) == first + 1


async def test_a_node_cannot_report_for_another(client: Client, exchange: Exchange) -> None:
    answer = await client.post(f"/v1/nodes/{ONE}/report", data=report(TWO), headers=BEARER)
    assert answer.status == 403
    assert exchange.nodes == {}


async def test_a_report_wakes_the_reconciler_only_when_something_changed(
    client: Client, exchange: Exchange
) -> None:
    await client.post(f"/v1/nodes/{ONE}/report", data=report(), headers=BEARER)
    assert exchange.reported.is_set()
    exchange.reported.clear()
    await client.post(f"/v1/nodes/{ONE}/report", data=report(sent=2.0), headers=BEARER)
    assert not exchange.reported.is_set()
    failed = report(state=CopyState.FAILED)
    await client.post(f"/v1/nodes/{ONE}/report", data=failed, headers=BEARER)
    assert exchange.reported.is_set()
    assert exchange.nodes[ONE].received_s == 100.0


async def test_a_malformed_report_is_refused_and_changes_nothing(
    client: Client, exchange: Exchange
) -> None:
    answer = await client.post(f"/v1/nodes/{ONE}/report", data=b'{"copies": 1}', headers=BEARER)
    assert answer.status == 400
    assert exchange.nodes == {}


async def test_the_gateway_needs_its_own_token(client: Client) -> None:
    assert (await client.get("/v1/gateway/routes", headers=BEARER)).status == 401
    body = msgspec.json.encode(GatewayReport("g", 1, 1.0))
    gate = {"Authorization": "Bearer gate"}
    assert (await client.post("/v1/gateway/report", data=body, headers=gate)).status == 204


async def test_a_control_plane_whose_clock_was_set_back_is_heard_at_once() -> None:
    before, after = Exchange(), Exchange()
    old = before.publish_routes(Routes(0, region="eu-west-1"), 7200.0)
    seen = await before.watch_routes(0, 1.0)
    assert seen is not None
    new = after.publish_routes(Routes(0, region="us-west-2"), 3600.0)
    assert new < old
    assert await after.watch_routes(old, 0.01) is None, "0.1.0 knows no epoch"
    told = await after.watch_routes(old, 1.0, seen.epoch)
    assert told is not None
    assert told.region == "us-west-2"
    assert await after.watch_routes(told.version, 0.01, told.epoch) is None


def test_a_version_counts_only_in_its_own_epoch() -> None:
    before, after = Exchange(), Exchange()
    before.publish_assignment(NodeAssignment(0, ONE), 7200.0)
    after.publish_assignment(NodeAssignment(0, ONE), 3600.0)
    old, new = before.assignments[ONE].message, after.assignments[ONE].message
    assert old is not None
    assert new is not None
    assert not after.told(new, old.version, old.epoch)
    assert after.told(new, new.version, new.epoch)
    assert after.told(new, old.version, ""), "a node of 0.1.0"
