"""The gateway's process: `python -m zeropull.daemons.gateway --settings R/settings.json`.

Started by a supervisor, it inherits the listening sockets and waits until it is told to serve. It
outlives that supervisor: containers go on running then, and so does the port that leads to them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import stat
import sys
from collections.abc import Awaitable, Sequence
from pathlib import Path

import uvloop

from zeropull.controlapi.client import ControlClient
from zeropull.daemons.gateway_keeper import ACTIVATE, LEAVING, READY, STOP
from zeropull.daemons.handover import HandoverServer
from zeropull.daemons.settings_file import read_settings
from zeropull.errors import ConfigurationError
from zeropull.gateway.control_link import ControlLink
from zeropull.gateway.server import Gateway
from zeropull.linux.files import EVERYBODY_READS, replace_file
from zeropull.resources.settings import Settings
from zeropull.telemetry import configure_logging, get_logger

FINAL_REPORT_S = 2.0
ROUTES_S = 5.0  # one that follows no other waits this long for its first routes
LONE_LOG = "gateway.log"  # in R

log = get_logger(__name__)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="zeropull-gateway")
    parser.add_argument("--settings", type=Path, required=True, help="merged settings, JSON")
    parser.add_argument("--listen-fds", default="", help="inherited sockets, comma-separated")
    parser.add_argument("--keeper-fd", type=int, help="inherited channel to the supervisor")
    arguments = parser.parse_args(argv)
    try:
        settings = read_settings(arguments.settings)
    except ConfigurationError as error:
        log.error("cannot serve", reason=error.reason)
        return 1
    configure_logging("gateway", level=settings.serve.log_level)
    _raise_file_limit()
    numbers = [int(number) for number in arguments.listen_fds.split(",") if number]
    sockets = [socket.socket(fileno=number) for number in numbers]
    channel = None if arguments.keeper_fd is None else socket.socket(fileno=arguments.keeper_fd)
    for inherited in [*sockets, *([channel] if channel is not None else [])]:
        inherited.set_inheritable(False)
        inherited.setblocking(False)
    uvloop.run(GatewayProcess(settings, sockets, channel).run())
    return 0


class GatewayProcess:
    """One gateway, from its start as the one that follows to its end."""

    def __init__(
        self, settings: Settings, sockets: Sequence[socket.socket], channel: socket.socket | None
    ) -> None:
        """`channel` None: it serves at once, on a port of its own if there are no `sockets`."""
        self._settings = settings
        self._channel = channel
        self._sockets = sockets
        self._has_keeper = False
        self._stop = asyncio.Event()
        self._drain = asyncio.Event()
        self._gateway = Gateway(
            settings.gateway,
            host=settings.serve.host,
            port=settings.serve.port,
            sockets=sockets,
            api_socket=str(settings.api_socket),
            account=settings.serve.account,
        )

    async def run(self) -> None:
        """Serve until a signal or a successor ends it."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        run_dir = self._settings.run_dir
        async with ControlClient(
            self._settings.control_socket, self._settings.gateway_token
        ) as client:
            link = ControlLink(
                self._gateway,
                client,
                # Two gateways report side by side while the first one drains.
                gateway_id=f"{socket.gethostname()}:{run_dir}:{os.getpid()}",
                routes_file=run_dir / "routes.json",
            )
            if await self._is_activated():
                await self._serve(link)

    async def _serve(self, link: ControlLink) -> None:
        linked = asyncio.create_task(link.run())
        if not link.load_routes() and self._channel is not None:
            await link.wait_for_routes(ROUTES_S)
        asked = {"drain": self._begin_drain, "stop": self._stop.set}
        async with self._gateway, HandoverServer(self._settings.run_dir, self._sockets, asked):
            keeper = asyncio.create_task(self._hear_keeper())
            await self._tell_ready()
            ended = await self._wait_for_end(linked)
            log.info("gateway stops", in_flight=self._gateway.in_flight, why=ended)
            if ended == "drain":
                link.keeps_routes = False
                await self._until_stopped(self._gateway.drain())
        linked.cancel()
        keeper.cancel()
        await asyncio.wait({linked, keeper})
        try:
            async with asyncio.timeout(FINAL_REPORT_S):
                await link.report(leaving=True)
        except TimeoutError:
            log.info("last report not delivered in time")
        if not linked.cancelled() and (error := linked.exception()) is not None:
            raise error

    async def _is_activated(self) -> bool:
        """Wait for the supervisor's word; False when it has gone, or a signal came first."""
        if self._channel is None:
            return True
        loop = asyncio.get_running_loop()
        gc.collect()
        gc.freeze()  # what start-up made stays: no collection need walk through it
        said = asyncio.ensure_future(loop.sock_recv(self._channel, 64))
        await self._until_stopped(said)
        if said.cancelled() or said.exception() is not None:
            return False
        return ACTIVATE in said.result() and STOP not in said.result()

    async def _tell_ready(self) -> None:
        host, port = self._gateway.address
        log.info("gateway listens", host=host, port=port)
        run_dir = self._settings.run_dir
        address = f"{host}:{port}\n"
        replace_file(run_dir / "address", address, mode=EVERYBODY_READS, is_durable=False)
        gc.collect()
        gc.freeze()
        if self._channel is not None:
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_sendall(self._channel, READY)

    async def _wait_for_end(self, linked: asyncio.Task[None]) -> str:
        """Why it ends."""
        waits = {
            "stop": asyncio.ensure_future(self._stop.wait()),
            "drain": asyncio.ensure_future(self._drain.wait()),
        }
        await asyncio.wait({linked, *waits.values()}, return_when=asyncio.FIRST_COMPLETED)
        done = [why for why, wait in waits.items() if wait.done()]
        for wait in waits.values():
            wait.cancel()
        return done[0] if done else "its link to the control plane broke"

    def _signalled(self) -> None:
        """Another follows at once while it answers what it has; without a supervisor, none does."""
        if self._has_keeper and not self._drain.is_set():
            with contextlib.suppress(OSError):
                assert self._channel is not None
                self._channel.send(LEAVING)
                self._begin_drain()
                return
        self._stop.set()

    def _begin_drain(self) -> None:
        self._gateway.stop_accepting()
        self._drain.set()

    async def _hear_keeper(self) -> None:
        """Without its supervisor it serves on, and its output must not keep a pipe open."""
        if self._channel is None:
            return
        loop = asyncio.get_running_loop()
        self._has_keeper = True
        with contextlib.suppress(OSError):
            while said := await loop.sock_recv(self._channel, 64):
                if STOP in said:
                    self._stop.set()
        self._has_keeper = False
        log.info("supervisor has gone, gateway serves on")
        move_output(self._settings.run_dir / LONE_LOG)

    async def _until_stopped(self, work: Awaitable[object]) -> None:
        """Wait for the end of `work`, or cancel it when a signal comes."""
        task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


def move_output(path: Path) -> None:
    """Write to this file from now on what went to a pipe or a terminal; a journal is kept."""
    for number in (1, 2):
        if not (stat.S_ISFIFO(os.fstat(number).st_mode) or os.isatty(number)):
            continue
        with contextlib.suppress(OSError):
            target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.dup2(target, number)
            os.close(target)
    sys.stdout.flush()
    sys.stderr.flush()


def _raise_file_limit() -> None:
    """Every request in flight has two sockets."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    raise SystemExit(main())
