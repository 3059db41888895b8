"""Time-outs with a clock that the test moves: 60 s, 8 minutes of a stream, and the wall clock."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from zeropull.gateway.server import Gateway
from zeropull.resources.settings import GatewaySettings

from .harness import Client, Received, Writer, container, copy, routes, until


class Clocks:
    """What the gateway takes for the time."""

    def __init__(self) -> None:
        self.wall_s = 1_790_000_000.5
        self.monotonic_s = 1000.0

    async def advance(self, served: Gateway, seconds: float) -> None:
        """Returns when the gateway has looked at what is overdue."""
        self.monotonic_s += seconds
        await until(lambda: served.state.now_s == self.monotonic_s)


@contextlib.asynccontextmanager
async def timed_gateway(clocks: Clocks, *, held: bool = False) -> AsyncIterator[Gateway]:
    async def behave(request: Received, writer: Writer) -> None:
        if request.body == b"stream":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await asyncio.Event().wait()

    settings = GatewaySettings(verify_signatures=False, stop_grace_s=2.0)
    async with (
        container(behave) as model,
        Gateway(
            settings,
            host="127.0.0.1",
            port=0,
            api_socket="/nonexistent",
            clock=lambda: clocks.wall_s,
            monotonic=lambda: clocks.monotonic_s,
        ) as served,
    ):
        targets = () if held else (copy("1", model.port, max_concurrency=1),)
        served.apply(routes(*targets, hold=held))
        yield served


@pytest.mark.parametrize(
    ("operation", "body", "limit_s"),
    [("invocations", b"x", 60.0), ("invocations-response-stream", b"stream", 480.0)],
)
async def test_an_invocation_may_take_as_long_as_on_sagemaker(
    operation: str, body: bytes, limit_s: float
) -> None:
    clocks = Clocks()
    async with timed_gateway(clocks) as served:
        client = await Client.open(served)
        client.send(body, operation=operation)
        await until(lambda: served.in_flight)
        if body == b"stream":
            await client.reader.readuntil(b":message-type")
        await clocks.advance(served, limit_s - 0.1)
        assert served.in_flight == 1
        await clocks.advance(served, 0.2)
        await until(lambda: not served.in_flight)
        if body == b"stream":
            assert b"ModelInvocationTimeExceeded" in await client.reader.readuntil(b"0\r\n\r\n")
        else:
            found = await client.receive()
            assert found.status == 424
            assert "timed out while waiting" in json.loads(found.body)["OriginalMessage"]


async def test_a_step_of_the_wall_clock_ends_no_request_and_no_connection() -> None:
    clocks = Clocks()
    async with timed_gateway(clocks) as served:
        first, second = await Client.open(served), await Client.open(served)
        idle = await Client.open(served)
        first.send(b"x")
        await until(lambda: served.in_flight)
        second.send(b"y")
        group = next(iter(served.state.table.groups.values()))
        await until(lambda: group.waiting)
        for step_s in (86_400.0, -200_000.0):
            clocks.wall_s += step_s
            await clocks.advance(served, 1.5)
            served.take_readings()
            assert (served.in_flight, len(group.waiting)) == (1, 1)
            assert len(served.state.clients.open) == 3
        await clocks.advance(served, 60)
        assert (await first.receive()).status == 424
        await until(lambda: not group.waiting)  # the slot is the second one's now
        await clocks.advance(served, 59.9)
        assert served.in_flight == 1
        await clocks.advance(served, 0.2)
        assert (await second.receive()).status == 424
        idle.close()


async def test_a_request_held_from_zero_is_told_after_50_s_to_come_again() -> None:
    clocks = Clocks()
    async with timed_gateway(clocks, held=True) as served:
        client = await Client.open(served)
        client.send(b"x")
        group = next(iter(served.state.table.groups.values()))
        await until(lambda: group.waiting)
        await clocks.advance(served, 49.9)
        assert group.waiting
        await clocks.advance(served, 0.2)
        found = await client.receive()
        assert found.status == 429
        assert float(found.headers["x-zeropull-cold-start"]) == pytest.approx(50.1, abs=0.01)
