"""A real gateway on loopback, and containers that do what a test tells them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace

from zeropull.controlapi.messages import AccessKey, EndpointRoute, Routes, Target, VariantRoute
from zeropull.gateway.server import Gateway
from zeropull.resources.settings import GatewaySettings

KEY = AccessKey("AKIDTEST", "secret", "123456789012")
Writer = asyncio.StreamWriter


@dataclass
class Received:
    """One request as the container saw it."""

    line: bytes
    headers: dict[str, str]
    body: bytes


Behaviour = Callable[[Received, Writer], Awaitable[None]]


async def answer(writer: Writer, body: bytes = b"ok", status: str = "200 OK") -> None:
    writer.write(
        b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(body), body)
    )
    await writer.drain()


@dataclass
class Container:
    """A plain HTTP/1.1 server; `behave` answers, requests are kept in order of arrival."""

    behave: Behaviour
    received: list[Received] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # a client's connection has ended
    arrived: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    port: int = 0
    connections: int = 0  # that were ever opened

    async def serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        self.connections += 1
        # Read ahead, so that the end is seen while a request is being answered.
        ahead, ended = asyncio.StreamReader(limit=1 << 20), asyncio.Event()

        async def read_ahead() -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(1 << 18):
                    ahead.feed_data(data)
            ahead.feed_eof()
            ended.set()

        async def answer_all() -> None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    head = (await ahead.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                    pairs = (line.split(": ", 1) for line in head[1:-2])
                    headers = {name.lower(): value for name, value in pairs}
                    body = await ahead.readexactly(int(headers.get("content-length", 0)))
                    request = Received(head[0].encode(), headers, body)
                    self.received.append(request)
                    self.arrived.release()
                    await self.behave(request, writer)

        reading, answering = asyncio.create_task(read_ahead()), asyncio.create_task(answer_all())
        try:
            await ended.wait()
        finally:
            answering.cancel()
            reading.cancel()
            self.gone.set()
            writer.close()


@contextlib.asynccontextmanager
async def container(behave: Behaviour | None = None) -> AsyncIterator[Container]:
    async def default(request: Received, writer: Writer) -> None:
        await answer(writer, request.body)

    made = Container(behave or default)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, limit=1 << 20)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


def copy(name: str, port: int, **values: object) -> Target:
    return Target(name, f"i-{name}", "127.0.0.1", port, **values)  # type: ignore[arg-type]


def routes(
    *targets: Target,
    version: int = 1,
    hold: bool = False,
    limit: int = 1000,
    strategy: str = "LEAST_OUTSTANDING_REQUESTS",
) -> Routes:
    variant = VariantRoute("AllTraffic", targets=targets, strategy=strategy, queue_limit=limit)
    endpoint = EndpointRoute(
        "e", KEY.account, "InService", variants=(variant,), hold_from_zero=hold
    )
    return Routes(version, keys=(KEY,), endpoints=(endpoint,))


@contextlib.asynccontextmanager
async def gateway(
    served: Routes | None = None, *, api_socket: str = "/nonexistent/api.sock", **settings: object
) -> AsyncIterator[Gateway]:
    made = GatewaySettings(verify_signatures=False, stop_grace_s=2.0)
    made = replace(made, **settings)  # type: ignore[arg-type]
    async with Gateway(made, host="127.0.0.1", port=0, api_socket=api_socket) as running:
        if served is not None:
            running.apply(served)
        yield running


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """One connection of a plain HTTP/1.1 client."""

    def __init__(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, served: Gateway) -> Client:
        return cls(*await asyncio.open_connection(*served.address, limit=1 << 20))

    def send(
        self,
        body: bytes = b"",
        *,
        operation: str = "invocations",
        endpoint: str = "e",
        headers: str = "",
    ) -> None:
        self.writer.write(
            f"POST /endpoints/{endpoint}/{operation} HTTP/1.1\r\nHost: h\r\n{headers}"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )

    async def receive(self) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value
            for name, value in (line.split(": ", 1) for line in head[1:] if line)
        }
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
        else:
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(head[0].split()[1]), headers, body)

    async def call(self, body: bytes = b"", **values: str) -> Answer:
        self.send(body, **values)
        return await self.receive()

    def close(self) -> None:
        self.writer.transport.abort()


async def until(condition: Callable[[], object]) -> None:
    """Run the loop until it holds; the gateway tells nobody when a request starts to wait."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)
