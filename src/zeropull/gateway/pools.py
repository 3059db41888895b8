"""Connections to copies and to the control plane, kept alive between requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from zeropull.gateway import upstream
from zeropull.gateway.known_answer import KnownAnswerHeads
from zeropull.gateway.routing import Connecting, Target
from zeropull.gateway.upstream import UpstreamConnection
from zeropull.resources.settings import GatewaySettings
from zeropull.telemetry import get_logger

IDLE_PER_COPY = 512  # connections kept to one copy
RELAY_IDLE = 32  # connections kept to the control plane
RELAY_IDLE_S = 15.0

log = get_logger(__name__)


class Pools:
    """Idle connections, and the new ones that are being made.

    The connections to a copy stand in `Target.idle`. `now_s` is monotonic. `tasks` outlives every
    connection that is being made.
    """

    __slots__ = (
        "_api_socket",
        "_known_answers",
        "_monotonic",
        "_relay_idle",
        "_settings",
        "_tasks",
        "stopping",
    )

    def __init__(
        self,
        settings: GatewaySettings,
        known_answers: KnownAnswerHeads,
        *,
        api_socket: str,
        tasks: asyncio.TaskGroup,
        monotonic: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._known_answers = known_answers
        self._api_socket = api_socket
        self._tasks = tasks
        self._monotonic = monotonic
        self._relay_idle: list[UpstreamConnection] = []
        self.stopping = False  # nothing is kept any more

    # To a copy

    def connect(self, request: Connecting, target: Target) -> None:
        """Make a connection to the copy for this request, which may get another one meanwhile."""
        self._tasks.create_task(self._connect(request, target))

    async def _connect(self, request: Connecting, target: Target) -> None:
        try:
            connection = await upstream.connect(
                (target.host, target.port),
                target.idle,
                self._known_answers,
                self._settings.connect_timeout_s,
            )
        except OSError as error:
            log.info("copy refuses a connection", copy_id=target.copy_id, reason=repr(error))
            request.connect_failed(refused=not isinstance(error, TimeoutError))
            return
        if not request.connected(connection):
            self.keep(target, connection, self._monotonic())

    def keep(self, target: Target, connection: UpstreamConnection, now_s: float) -> None:
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
        connection.idle_since_s = now_s
        target.idle.append(connection)

    def eject(self, target: Target, now_s: float) -> None:
        """The copy refused a connection: out of rotation for a moment, without its connections."""
        pause_s = target.eject(now_s)
        while target.idle:
            target.idle.pop().transport.abort()
        log.warning("copy leaves rotation for a moment", copy_id=target.copy_id, pause_s=pause_s)

    # To the control plane

    def take_relay(self) -> UpstreamConnection | None:
        """An idle connection to the control plane."""
        return self._relay_idle.pop() if self._relay_idle else None

    def connect_relay(self, request: Connecting) -> None:
        self._tasks.create_task(self._connect_relay(request))

    async def _connect_relay(self, request: Connecting) -> None:
        try:
            connection = await upstream.connect(
                self._api_socket,
                self._relay_idle,
                self._known_answers,
                self._settings.relay_connect_timeout_s,
            )
        except OSError:
            request.connect_failed(refused=True)
            return
        if not request.connected(connection):
            connection.abandon()

    def keep_relay(self, connection: UpstreamConnection, now_s: float) -> None:
        if connection.closed:
            return
        if self.stopping or len(self._relay_idle) >= RELAY_IDLE:
            connection.transport.close()
            return
        connection.idle_since_s = now_s
        self._relay_idle.append(connection)

    # All of them

    def sweep(self, targets: Iterable[Target], now_s: float) -> None:
        """Close what has been idle for too long."""
        for target in targets:
            _close_older(target.idle, now_s - self._settings.upstream_idle_s)
        _close_older(self._relay_idle, now_s - RELAY_IDLE_S)

    def close_idle(self, targets: Iterable[Target]) -> None:
        """Close all idle connections to these copies."""
        for target in targets:
            while target.idle:
                target.idle.pop().transport.close()

    def close_relay(self) -> None:
        while self._relay_idle:
            self._relay_idle.pop().transport.close()


def _close_older(idle: list[UpstreamConnection], before_s: float) -> None:
    # The last one in is the first one out, so that the oldest stand in front.
    count = 0
    while count < len(idle) and idle[count].idle_since_s < before_s:
        count += 1
    for connection in idle[:count]:
        connection.transport.close()
    del idle[:count]
