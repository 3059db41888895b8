"""What bounds a client that no key has let in yet: memory, connections and time."""

from __future__ import annotations

import asyncio

import pytest

from zeropull.gateway.connection import HEAD_S, ClientConnection
from zeropull.gateway.server import Gateway
from zeropull.resources.settings import GatewaySettings

from .harness import Client, container, copy, gateway, routes, until

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


async def test_connections_beyond_the_limit_are_closed_and_the_others_served() -> None:
    async with (
        container() as model,
        gateway(routes(copy("1", model.port)), max_connections=2) as served,
    ):
        first, second, third = [await Client.open(served) for _ in range(3)]
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            third.send(b"3")
            await third.receive()
        for client in (first, second):
            client.send(b"hello")
            assert (await client.receive()).body == b"hello"
        assert served.state.clients.refused == 1


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
