"""Gateways that follow each other on the same sockets: killed, replaced, and left alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.fixtures.local_fleet import is_running
from zeropull.daemons.gateway_keeper import GatewayKeeper
from zeropull.daemons.handover import RunningGateway, stop_gateways
from zeropull.daemons.listening import address_of, bind_sockets, close_all
from zeropull.resources.settings import GatewaySettings, ServeSettings, Settings

from .harness import Client, Received, Writer, answer, container, copy, routes, until


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="zpgw-") as name:
        yield Path(name)
        stop_gateways(Path(name), 0.0)


def prepare(run_dir: Path, port: int) -> Path:
    """What a supervisor writes, and the routes that an earlier gateway has kept."""
    settings = Settings(
        serve=ServeSettings(state_dir=str(run_dir), run_dir=str(run_dir)),
        gateway=GatewaySettings(verify_signatures=False, stop_grace_s=5.0),
        gateway_token="token",
    )
    (run_dir / "settings.json").write_bytes(msgspec.json.encode(settings))
    (run_dir / "routes.json").write_bytes(msgspec.json.encode(routes(copy("1", port))))
    return run_dir / "settings.json"


class Port:
    """A client port with a keeper behind it."""

    def __init__(self, run_dir: Path, keeper: GatewayKeeper, address: tuple[str, int]) -> None:
        self.run_dir, self.keeper, self.address = run_dir, keeper, address

    async def connect(self) -> Client:
        return Client(*await asyncio.open_connection(*self.address))

    async def pid(self) -> int:
        """Of the gateway that serves, which is the newest one that can be asked."""
        sockets = self.run_dir.glob("gateway-*.sock")
        newest = max(sockets, key=lambda path: path.stat().st_mtime_ns)
        return int(newest.stem.removeprefix("gateway-"))


@contextlib.asynccontextmanager
async def kept_port(run_dir: Path, model_port: int, *, stops: bool = True) -> AsyncIterator[Port]:
    """`stops` False: left as by a supervisor that detaches."""
    sockets = bind_sockets("127.0.0.1", 0)
    keeper = GatewayKeeper(prepare(run_dir, model_port), sockets)
    keeping = asyncio.create_task(keeper.run())
    try:
        async with asyncio.timeout(30):
            await keeper.serving.wait()
        yield Port(run_dir, keeper, address_of(sockets))
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})
        if stops:
            await keeper.stop(10)
        else:
            keeper.let_go()
        close_all(sockets)


async def until_waiting(keeper: GatewayKeeper) -> None:
    """A second gateway has been started, and waits."""
    await until(lambda: keeper._standby is not None)


async def gone(pid: int) -> None:
    async with asyncio.timeout(20):
        while is_running(pid):  # noqa: ASYNC110 - a process that is no child has no event
            await asyncio.sleep(0.02)


async def test_what_no_gateway_has_accepted_is_answered_by_the_next_one(run_dir: Path) -> None:
    async with container() as model, kept_port(run_dir, model.port) as port:
        for number in range(3):
            await until_waiting(port.keeper)
            killed = await port.pid()
            os.kill(killed, signal.SIGKILL)
            client = await port.connect()
            async with asyncio.timeout(20):
                assert (await client.call(b"%d" % number)).body == b"%d" % number
            client.close()
            assert await port.pid() != killed


async def test_a_gateway_that_waits_is_replaced_when_it_dies(run_dir: Path) -> None:
    async with container() as model, kept_port(run_dir, model.port) as port:
        await until_waiting(port.keeper)
        waiting = port.keeper._standby
        assert waiting is not None
        os.kill(waiting.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while port.keeper._standby in (None, waiting):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.02)
        os.kill(await port.pid(), signal.SIGKILL)
        client = await port.connect()
        async with asyncio.timeout(20):
            assert (await client.call(b"x")).body == b"x"
        client.close()


async def test_a_gateway_that_is_replaced_answers_what_it_has_and_says_that_it_goes(
    run_dir: Path,
) -> None:
    gate = asyncio.Event()

    async def behave(request: Received, writer: Writer) -> None:
        if request.body == b"slow":
            await gate.wait()
        await answer(writer, request.body)

    async with container(behave) as model, kept_port(run_dir, model.port) as port:
        await until_waiting(port.keeper)
        slow, idle = await port.connect(), await port.connect()
        assert (await idle.call(b"before")).headers.get("connection") is None
        slow.send(b"slow")
        async with asyncio.timeout(10):
            while len(model.received) < 2:
                await model.arrived.acquire()
        old = await port.pid()
        os.kill(old, signal.SIGTERM)
        async with asyncio.timeout(20):
            while (new := await port.pid()) == old:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)
        said = await idle.call(b"after")
        assert (said.body, said.headers.get("connection")) == (b"after", "close")
        gate.set()
        said = await slow.receive()
        assert (said.body, said.headers.get("connection")) == (b"slow", "close")
        fresh = await port.connect()
        said = await fresh.call(b"new")
        assert (said.body, said.headers.get("connection")) == (b"new", None)
        await gone(old)
        assert is_running(new)


async def test_a_later_supervisor_takes_the_port_over_from_a_gateway_left_alone(
    run_dir: Path,
) -> None:
    async with container() as model:
        async with kept_port(run_dir, model.port, stops=False) as port:
            alone = await port.pid()
        client = await port.connect()
        assert (await client.call(b"alone")).body == b"alone"
        (earlier,) = await asyncio.to_thread(RunningGateway.find, run_dir)
        sockets = await asyncio.to_thread(earlier.sockets)
        assert address_of(sockets) == port.address
        keeper = GatewayKeeper(run_dir / "settings.json", sockets)
        keeping = asyncio.create_task(keeper.run())
        try:
            async with asyncio.timeout(30):
                await keeper.serving.wait()
            earlier.drain()
            said = await client.call(b"last")
            assert (said.body, said.headers.get("connection")) == (b"last", "close")
            await gone(alone)
            client = await port.connect()
            assert (await client.call(b"first")).body == b"first"
        finally:
            keeping.cancel()
            await asyncio.wait({keeping})
            await keeper.stop(10)
            close_all(sockets)


async def test_whoever_stops_without_a_supervisor_ends_the_gateway(run_dir: Path) -> None:
    async with container() as model:
        async with kept_port(run_dir, model.port, stops=False) as port:
            alone = await port.pid()
        os.kill(alone, signal.SIGSTOP)  # even one that hangs
        await asyncio.to_thread(stop_gateways, run_dir, 0.2)
        await gone(alone)
        with pytest.raises(ConnectionError):
            await port.connect()
        assert await asyncio.to_thread(RunningGateway.find, run_dir) == []
