"""The gateway itself: builds all parts, listens, and drives what time and new routes change."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from zeropull.controlapi.messages import CopyReading, Routes
from zeropull.gateway.connection import ClientConnection
from zeropull.gateway.handlers import RequestHandlers
from zeropull.gateway.routing import Group
from zeropull.gateway.state import GatewayState
from zeropull.resources.settings import GatewaySettings
from zeropull.telemetry import get_logger

SWEEP_S = 0.1  # time-outs are this exact
BACKLOG = 4096
MAX_REPORTED = 4000  # readings in one report, so that a long outage's are sent in pieces

log = get_logger(__name__)


class Gateway:
    """Serves one client port. An async context manager: entered = listening, left = stopped.

    Leaving it stops accepting, lets what is in flight finish within `settings.stop_grace_s`, and
    closes the rest. `drain` comes before that where another gateway serves the port already.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        host: str = "",
        port: int = 0,
        sockets: Sequence[socket.socket] = (),
        api_socket: str,
        account: str = "000000000000",
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`sockets` that listen already, where the port is not its own; else `host` and `port`."""
        self.state = GatewayState(
            settings, api_socket=api_socket, account=account, clock=clock, monotonic=monotonic
        )
        self._handlers = RequestHandlers(self.state)
        self._host, self._port = host, port
        self._sockets = sockets
        self._exit = AsyncExitStack()
        self._servers: list[asyncio.Server] = []
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it really listens."""
        host, port = self._servers[0].sockets[0].getsockname()[:2]
        return host, port

    @property
    def in_flight(self) -> int:
        """Requests at the copies now."""
        return len(self.state.deadlines)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.state.tasks)
            await self._listen()
            stack.push_async_callback(self._stop)
            self._exit = stack.pop_all()
        self._sweeper = loop.call_later(SWEEP_S, self._sweep)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._exit.__aexit__(kind, error, trace)

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._sockets:
            made = await loop.create_server(self._accept, self._host, self._port, backlog=BACKLOG)
            self._servers.append(made)
        for listening in self._sockets:
            # The loop closes what it is given; the one that was inherited may be handed on yet.
            made = await loop.create_server(self._accept, sock=listening.dup(), backlog=BACKLOG)
            self._servers.append(made)

    def stop_accepting(self) -> None:
        """Another gateway serves the port.

        Every further answer tells its client that the connection ends with it. A client that
        does not ask again is not cut off in the middle of asking: its connection ends when it has
        been idle.
        """
        self.state.draining = True
        for server in self._servers:
            server.close()

    async def drain(self) -> None:
        """After `stop_accepting`: return when all clients have gone, or after
        `settings.drain_timeout_s`."""
        state, clients = self.state, self.state.clients
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(state.settings.drain_timeout_s):
                while clients.open:
                    clients.drained.clear()
                    await clients.drained.wait()

    def apply(self, routes: Routes) -> None:
        """Take over a newer version of the routes; waiting requests start on new copies at once."""
        state, table = self.state, self.state.table
        table.apply(routes, state.clock())
        state.known_requests.forget()
        for group in table.removed:
            for waiter in list(group.waiting):
                waiter.endpoint_gone()
        table.removed.clear()
        for group in table.groups.values():
            if group.waiting:
                group.serve_waiting(state.monotonic())
        state.pools.close_idle(target for target in table.targets.values() if target.draining)
        for request in state.deadlines:
            request.end_at_former_address()
        log.info("routes applied", version=routes.version, copies=len(table.targets))

    def take_readings(self, count: int = MAX_REPORTED) -> list[CopyReading]:
        """Seconds that have ended and were not taken yet, oldest first, at most so many."""
        state, table = self.state, self.state.table
        now_s = state.clock()
        for group in table.groups.values():
            if group.waiting:
                age_s = state.monotonic() - next(iter(group.waiting)).queued_s
                group.meter.note_age(now_s, age_s)
            group.meter.roll(now_s)
        for target in table.targets.values():
            target.meter.roll(now_s)
        state.pools.close_idle(table.forget_finished(now_s))
        return state.readings.take(count)

    def take_halves(self) -> list[CopyReading]:
        """The second in progress, of every copy and queue that had a request in it."""
        now_s, table = self.state.clock(), self.state.table
        meters = [group.meter for group in table.groups.values()]
        meters += [target.meter for target in table.targets.values()]
        halves = (meter.half(now_s) for meter in meters)
        return [half for half in halves if half is not None]

    def _accept(self) -> ClientConnection:
        return ClientConnection(self.state, self._handlers)

    def _sweep(self) -> None:
        state = self.state
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
        before_s, state.now_s = state.now_s, state.monotonic()
        state.deadlines.sweep(state.now_s)
        for group in state.table.groups.values():
            if group.waiting:
                self._give_up_oldest(group)
            group.widen()
            if group.waiting:
                group.serve_waiting(state.monotonic())
        if int(before_s) == int(state.now_s):
            return
        state.pools.sweep(state.table.targets.values(), state.now_s)
        state.clients.sweep(state.now_s)

    def _give_up_oldest(self, group: Group) -> None:
        settings = self.state.settings
        while group.waiting:
            oldest = next(iter(group.waiting))
            limit_s = settings.hold_timeout_s if oldest.held else settings.request_timeout_s
            if self.state.now_s - oldest.queued_s < limit_s:
                return
            oldest.give_up_waiting()

    async def _stop(self) -> None:
        state, clients = self.state, self.state.clients
        self.stop_accepting()
        state.stopping = state.pools.stopping = True
        for client in list(clients.open):
            client.close_if_idle()
        try:
            async with asyncio.timeout(state.settings.stop_grace_s):
                while clients.open:
                    clients.drained.clear()
                    await clients.drained.wait()
        except TimeoutError:
            log.warning("requests cut off at stop", requests=self.in_flight)
        for client in list(clients.open):
            client.transport.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
        state.pools.close_idle(state.table.targets.values())
        state.pools.close_relay()
        for server in self._servers:
            await server.wait_closed()
