"""The gateway itself: the client port, the connections to copies, time-outs and what is counted."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from zeropull.controlapi.messages import CopyReading, Routes
from zeropull.gateway import upstream
from zeropull.gateway.backlog import ReadingsBacklog
from zeropull.gateway.connection import ClientConnection
from zeropull.gateway.invocation import Invocation
from zeropull.gateway.own_pages import LocalAnswer
from zeropull.gateway.refusals import Refusal
from zeropull.gateway.relay import Relay
from zeropull.gateway.request import Handler, Request
from zeropull.gateway.routing import Group, RoutingTable, Target
from zeropull.gateway.signed_request import SignedRequests
from zeropull.gateway.upstream import UpstreamConnection
from zeropull.gateway.whole_request import Remembered, WholeRequests
from zeropull.resources.settings import GatewaySettings
from zeropull.telemetry import get_logger

SWEEP_S = 0.1  # time-outs are this exact
IDLE_PER_COPY = 512  # connections kept to one copy
RELAY_IDLE = 32  # connections kept to the control plane
RELAY_IDLE_S = 15.0
BACKLOG = 4096
MAX_REPORTED = 4000  # readings in one report, so that a long outage's are sent in pieces

log = get_logger(__name__)


class Gateway:
    """Serves one client port. An async context manager: entered = listening, left = stopped.

    Leaving it stops accepting, lets what is in flight finish within `settings.stop_grace_s`, and
    closes the rest.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        host: str,
        port: int,
        api_socket: str,
        account: str = "000000000000",
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.api_socket = api_socket
        self.account = account  # named in answers when no key says whose it is
        self.clock = clock  # for what is reported and for signatures
        self.monotonic = monotonic  # for everything that takes or lasts
        self.signed = settings.verify_signatures
        self.now_s = monotonic()  # as of the last sweep: good enough for time-outs
        self.readings = ReadingsBacklog()
        self.table = RoutingTable(self.readings.add)
        self.remembered: Remembered = SignedRequests() if self.signed else WholeRequests()
        self.connections: set[ClientConnection] = set()
        self.connections_refused = 0  # beyond `settings.max_connections`
        self.relay_idle: list[UpstreamConnection] = []
        self.stopping = False
        self.drained = asyncio.Event()  # the last connection of a client has gone
        self.body_bytes = 0  # of request bodies in memory
        self.refusals: dict[tuple[int, str], int] = {}  # before any group was found
        self.cancelled = 0
        # Called when a request is held where no copy is: it cannot wait for the next report.
        self.first_held: Callable[[], None] = lambda: None
        self._host, self._port = host, port
        self._unaries: dict[Invocation, float] = {}  # invocation -> deadline, in order of both
        self._streams: dict[Invocation, float] = {}
        self._tasks: asyncio.TaskGroup
        self._exit = AsyncExitStack()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self.next_request_id: Callable[[], bytes] = _request_ids().__next__

    @property
    def address(self) -> tuple[str, int]:
        """Where it really listens."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            self._tasks = await stack.enter_async_context(asyncio.TaskGroup())
            self._server = await loop.create_server(
                self._accept, self._host, self._port, backlog=BACKLOG
            )
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

    # ------------------------------------------------------------------ requests

    def handler_for(self, client: ClientConnection, request: Request) -> Handler:
        path = request.path
        if path.startswith(b"/endpoints/"):
            return Invocation(self, client, request, request.received_s)
        if path in (b"/healthz", b"/metrics"):
            return LocalAnswer(self, client, request)
        return Relay(self, client, request)

    def invocation_for(self, client: ClientConnection, request: Request) -> Invocation:
        """Handler of an invocation that came at this moment with a head known before."""
        return Invocation(self, client, request, self.monotonic())

    def watch(self, invocation: Invocation, streamed: bool) -> None:
        """Time it out when it takes longer than its kind may."""
        if streamed:
            self._streams[invocation] = self.now_s + self.settings.stream_timeout_s
        else:
            self._unaries[invocation] = self.now_s + self.settings.request_timeout_s

    def unwatch(self, invocation: Invocation, streamed: bool) -> None:
        (self._streams if streamed else self._unaries).pop(invocation, None)

    @property
    def in_flight(self) -> int:
        return len(self._unaries) + len(self._streams)

    def slot_free(self, group: Group) -> None:
        """The oldest waiting requests take what is free."""
        while group.waiting:
            now_s = self.monotonic()
            target = group.choose(now_s)
            if target is None:
                return
            next(iter(group.waiting)).begin(target, now_s)

    def count_refusal(self, group: Group | None, refusal: Refusal) -> None:
        results = self.refusals if group is None else group.results
        result = (refusal.status, refusal.code)
        results[result] = results.get(result, 0) + 1

    def count_cancelled(self, group: Group | None) -> None:
        self.cancelled += 1
        if group is not None:
            group.results[499, "ClientGone"] = group.results.get((499, "ClientGone"), 0) + 1

    # ------------------------------------------------------------------ connections to copies

    def connect(self, invocation: Invocation, target: Target) -> None:
        self._tasks.create_task(self._connect(invocation, target))

    async def _connect(self, invocation: Invocation, target: Target) -> None:
        try:
            connection = await upstream.connect(
                (target.host, target.port), target.idle, self.settings.connect_timeout_s
            )
        except OSError as error:
            log.info("copy refuses a connection", copy_id=target.copy_id, reason=repr(error))
            refused = not isinstance(error, TimeoutError)
            invocation.connect_failed(refused=refused)
            return
        if not invocation.connected(connection):
            self.keep(target, connection)

    def keep(self, target: Target, connection: UpstreamConnection) -> None:
        """A connection that is free again, for the next request to this copy."""
        if connection.closed:
            return
        if connection.pool is not target.idle:  # the copy has another address now
            connection.transport.close()
            return
        # Whoever still waits for a connection of its own takes this one.
        if target.connecting and next(iter(target.connecting)).connected(connection):
            return
        if target.gone or self.stopping or len(target.idle) >= IDLE_PER_COPY:
            connection.transport.close()
            return
        connection.idle_since_s = self.now_s
        target.idle.append(connection)

    def eject(self, target: Target) -> None:
        pause_s = target.eject(self.monotonic())
        while target.idle:
            target.idle.pop().transport.abort()
        log.warning("copy leaves rotation for a moment", copy_id=target.copy_id, pause_s=pause_s)

    def connect_relay(self, relay: Relay) -> None:
        self._tasks.create_task(self._connect_relay(relay))

    async def _connect_relay(self, relay: Relay) -> None:
        try:
            connection = await upstream.connect(
                self.api_socket, self.relay_idle, self.settings.relay_connect_timeout_s
            )
        except OSError:
            relay.connect_failed()
            return
        if not relay.connected(connection):
            connection.abandon()

    def keep_relay(self, connection: UpstreamConnection) -> None:
        if connection.closed:
            return
        if self.stopping or len(self.relay_idle) >= RELAY_IDLE:
            connection.transport.close()
            return
        connection.idle_since_s = self.now_s
        self.relay_idle.append(connection)

    def run(self, answer: LocalAnswer) -> None:
        self._tasks.create_task(answer.collect())

    # ------------------------------------------------------------------ routes and readings

    def apply(self, routes: Routes) -> None:
        """Take over a newer version of the routes; waiting requests start on new copies at once."""
        self.table.apply(routes, self.clock())
        self.remembered.forget()
        for group in self.table.removed:
            for invocation in list(group.waiting):
                invocation.endpoint_gone()
        self.table.removed.clear()
        for group in self.table.groups.values():
            if group.waiting:
                self.slot_free(group)
        for target in self.table.targets.values():
            if target.draining:
                _close_idle(target.idle)
        for invocation in [*self._unaries, *self._streams]:
            invocation.end_at_former_address()
        log.info("routes applied", version=routes.version, copies=len(self.table.targets))

    def take_readings(self, count: int = MAX_REPORTED) -> list[CopyReading]:
        """Seconds that have ended and were not taken yet, oldest first, at most so many."""
        now_s = self.clock()
        for group in self.table.groups.values():
            if group.waiting:
                age_s = self.monotonic() - next(iter(group.waiting)).queued_s
                group.meter.note_age(now_s, age_s)
            group.meter.roll(now_s)
        for target in self.table.targets.values():
            target.meter.roll(now_s)
        for target in self.table.forget_finished(now_s):
            _close_idle(target.idle)
        return self.readings.take(count)

    def take_halves(self) -> list[CopyReading]:
        """The second in progress, of every copy and queue that had a request in it."""
        now_s = self.clock()
        meters = [group.meter for group in self.table.groups.values()]
        meters += [target.meter for target in self.table.targets.values()]
        halves = (meter.half(now_s) for meter in meters)
        return [half for half in halves if half is not None]

    # ------------------------------------------------------------------ time passes

    def _accept(self) -> ClientConnection:
        return ClientConnection(self)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweeper = loop.call_later(SWEEP_S, self._sweep)
        before_s, self.now_s = self.now_s, self.monotonic()
        self._time_out(self._unaries)
        self._time_out(self._streams)
        for group in self.table.groups.values():
            if group.waiting:
                self._sweep_waiting(group)
            group.widen()
            if group.waiting:
                self.slot_free(group)
        if int(before_s) == int(self.now_s):
            return
        for target in self.table.targets.values():
            _close_older(target.idle, self.now_s - self.settings.upstream_idle_s)
        _close_older(self.relay_idle, self.now_s - RELAY_IDLE_S)
        for connection in list(self.connections):
            connection.sweep(self.now_s)

    def _time_out(self, running: dict[Invocation, float]) -> None:
        while running:
            invocation, deadline_s = next(iter(running.items()))
            if deadline_s > self.now_s:
                return
            del running[invocation]
            invocation.time_out()

    def _sweep_waiting(self, group: Group) -> None:
        while group.waiting:
            oldest = next(iter(group.waiting))
            settings = self.settings
            limit_s = settings.hold_timeout_s if oldest.held else settings.request_timeout_s
            if self.now_s - oldest.queued_s < limit_s:
                return
            oldest.give_up_waiting()

    async def _stop(self) -> None:
        assert self._server is not None
        self.stopping = True
        self._server.close()
        for connection in list(self.connections):
            connection.close_if_idle()
        try:
            async with asyncio.timeout(self.settings.stop_grace_s):
                while self.connections:
                    self.drained.clear()
                    await self.drained.wait()
        except TimeoutError:
            log.warning("requests cut off at stop", requests=self.in_flight)
        for connection in list(self.connections):
            connection.transport.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for target in self.table.targets.values():
            _close_idle(target.idle)
        _close_idle(self.relay_idle)
        await self._server.wait_closed()


def _request_ids() -> Iterator[bytes]:
    """UUIDs that count up. Formatting a number costs more than putting its end behind it."""
    start = b"%08x-%04x-4%03x-8%03x-" % tuple(random.getrandbits(bits) for bits in (32, 16, 12, 12))
    ends = [b"%03x" % number for number in range(4096)]
    for count in itertools.count():
        middle = b"%b%09x" % (start, count)
        for end in ends:
            yield middle + end


def _close_idle(idle: list[UpstreamConnection]) -> None:
    while idle:
        idle.pop().transport.close()


def _close_older(idle: list[UpstreamConnection], before_s: float) -> None:
    # The last one in is the first one out, so that the oldest stand in front.
    count = 0
    while count < len(idle) and idle[count].idle_since_s < before_s:
        count += 1
    for connection in idle[:count]:
        connection.transport.close()
    del idle[:count]
