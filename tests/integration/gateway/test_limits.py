"""What bounds a client that no key has let in yet: memory, connections and time."""

from __future__ import annotations

import asyncio

import pytest

from zeropull.gateway.connection import HEAD_S, ClientConnection
from zeropull.gateway.server import Gateway
from zeropull.resources.settings import GatewaySettings

from .harness import Client, Received, Writer, answer, container, copy, gateway, routes, until

HEAD = b"POST /endpoints/e/invocations HTTP/1.1\r\nHost: h\r\n"


@pytest.mark.parametrize("framing", [b"Content-Length: 600\r\n", b"Transfer-Encoding: chunked\r\n"])
async def test_bodies_that_grow_over_the_memory_limit_together_are_refused(framing: bytes) -> None:
    async with (
        container() as model,
        gateway(routes(copy("1", model.port)), max_buffered_bytes=1000) as served,
    ):
        clients = [await Client.open(served) for _ in range(3)]
        for client in clients:
            client.writer.write(HEAD + framing + b"\r\n")
        await until(
            lambda: (
                sum(
                    isinstance(c, ClientConnection) and c.current is not None
                    for c in served.state.clients.open
                )
                == 3
            )
        )
        part = b"x" * 500
        for client in clients:
            client.writer.write(b"1f4\r\n%b\r\n" % part if b"chunked" in framing else part)
        refused, _ = await asyncio.wait(
            [asyncio.create_task(client.receive()) for client in clients],
            return_when=asyncio.FIRST_COMPLETED,
            timeout=5,
        )
        assert [task.result().status for task in refused] == [503]
        assert served.state.bodies.used_bytes <= 1000
        for client in clients:
            client.writer.close()


async def test_beyond_the_limit_an_idle_connection_makes_room_and_one_with_a_request_does_not() -> (
    None
):
    gate = asyncio.Event()

    async def behave(request: Received, writer: Writer) -> None:
        await gate.wait()
        await answer(writer, request.body)

    async with (
        container(behave) as model,
        gateway(routes(copy("1", model.port)), max_connections=2) as served,
    ):
        busy, idle = await Client.open(served), await Client.open(served)
        busy.send(b"busy")
        await asyncio.wait_for(model.arrived.acquire(), 5)
        newcomer = await Client.open(served)
        newcomer.send(b"new")
        assert await idle.reader.read() == b""
        await asyncio.wait_for(model.arrived.acquire(), 5)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            late = await Client.open(served)  # all have a request now
            late.send(b"late")
            await late.receive()
        gate.set()
        assert (await busy.receive()).body == b"busy"
        assert (await newcomer.receive()).body == b"new"
        assert (served.state.clients.evicted, served.state.clients.refused) == (1, 1)


@pytest.mark.parametrize("authorization", ["", "Authorization: AWS4-HMAC-SHA256 nonsense\r\n"])
async def test_a_body_whose_head_cannot_be_admitted_is_refused_before_it_comes(
    authorization: str,
) -> None:
    async with gateway(routes(), verify_signatures=True) as served:
        client = await Client.open(served)
        client.writer.write(HEAD + authorization.encode() + b"Content-Length: 9000000\r\n\r\n")
        refused = await client.receive()
        assert refused.status == 403
        assert refused.headers["connection"] == "close"
        assert served.state.bodies.used_bytes == 0


async def test_a_body_that_stands_still_makes_room_for_one_that_comes() -> None:
    now = [1000.0]
    settings = GatewaySettings(verify_signatures=False, max_buffered_bytes=1000, stop_grace_s=0.1)
    async with (
        container() as model,
        Gateway(
            settings, host="127.0.0.1", port=0, api_socket="/none", monotonic=lambda: now[0]
        ) as served,
    ):
        served.apply(routes(copy("1", model.port)))
        slow = [await Client.open(served) for _ in range(3)]
        for client in slow:
            client.writer.write(HEAD + b"Content-Length: 340\r\n\r\n" + b"x" * 300)
        await until(lambda: served.state.bodies.used_bytes == 900)
        now[0] += 2.0
        client = await Client.open(served)
        assert (await client.call(b"y" * 350)).body == b"y" * 350
        gone, _ = await asyncio.wait(
            [asyncio.create_task(one.receive()) for one in slow],
            return_when=asyncio.FIRST_COMPLETED,
            timeout=5,
        )
        assert [task.result().status for task in gone] == [503]
        assert served.state.bodies.used_bytes == 600


async def test_a_head_that_drips_in_is_cut_off() -> None:
    now = [1_000_000.0]
    settings = GatewaySettings(verify_signatures=False)
    async with Gateway(
        settings, host="127.0.0.1", port=0, api_socket="/nonexistent", monotonic=lambda: now[0]
    ) as served:
        client = await Client.open(served)
        await until(lambda: bool(served.state.clients.open))
        (connection,) = served.state.clients.open
        assert isinstance(connection, ClientConnection)
        for letter in (b"P", b"O", b"S", b"T"):
            assert not connection.closed
            connection.active_s = 0.0
            client.writer.write(letter)
            await until(lambda: connection.active_s)
            now[0] += HEAD_S / 3
            await until(lambda: served.state.now_s == now[0])
        await until(lambda: connection.closed)
