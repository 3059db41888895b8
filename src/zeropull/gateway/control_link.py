"""What connects the gateway with the control plane: routes come in, reports go out.

The newest routes are also kept in a file, so that a gateway that was killed serves again at once,
control plane or not.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import msgspec

from zeropull.backoff import Backoff
from zeropull.controlapi.client import ControlClient
from zeropull.controlapi.messages import GatewayReport, Routes, WaitingRequests
from zeropull.errors import AccessDenied, Unavailable
from zeropull.gateway.routing import RoutingTable
from zeropull.gateway.server import MAX_REPORTED, Gateway
from zeropull.linux.files import replace_file
from zeropull.telemetry import get_logger

RETRY = Backoff(first_s=0.2, limit_s=2.0)  # of calls that failed
REPORT_LAG_S = 0.01  # after each whole and half second, so that it is over
HALF_S = 0.5
TRIED = 20  # readings in a report after one that did not arrive

log = get_logger(__name__)


class ControlLink:
    """Keeps one gateway's routes current and reports for it, until cancelled."""

    def __init__(
        self, gateway: Gateway, client: ControlClient, *, gateway_id: str, routes_file: Path
    ) -> None:
        self._gateway = gateway
        self._client = client
        self._gateway_id = gateway_id
        self._routes_file = routes_file
        self._delivers = True  # the last report arrived
        self.keeps_routes = True  # False once a successor does
        self._routed = asyncio.Event()  # there have been routes
        self._urgent = asyncio.Event()  # routes were applied, or a request waits for a first copy
        gateway.state.first_held = self._urgent.set

    def load_routes(self) -> bool:
        """Serve from the routes that the last gateway kept; False when there are none to use."""
        try:
            routes = msgspec.json.decode(self._routes_file.read_bytes(), type=Routes)
        except FileNotFoundError:
            return False
        except (OSError, msgspec.MsgspecError) as error:
            log.warning(
                "kept routes cannot be read", path=str(self._routes_file), reason=str(error)
            )
            return False
        self._apply(routes)
        return True

    async def wait_for_routes(self, limit_s: float) -> None:
        """Return when there are routes, and after `limit_s` in any case; `run` runs meanwhile."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._routed.wait()

    async def run(self) -> None:
        """Watch and report until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            tasks.create_task(self._report_always())

    async def report(self, *, only_if_busy: bool = False, leaving: bool = False) -> bool:
        """One report with the readings since the last one; False = not delivered, kept.

        `only_if_busy` saves the report of half a second without requests.
        """
        gateway, state = self._gateway, self._gateway.state
        # Nobody may be there to read it: then a long outage's readings are not encoded in vain.
        readings = gateway.take_readings(MAX_REPORTED if self._delivers else TRIED)
        halves = gateway.take_halves()
        if only_if_busy and not readings and not halves:
            return True
        targets = state.table.targets.values()
        report = GatewayReport(
            gateway_id=self._gateway_id,
            routes_version=state.table.version,
            routes_epoch=state.table.epoch,
            sent_at_s=state.clock(),
            in_flight={target.copy_id: target.meter.in_flight for target in targets},
            waiting=tuple(
                WaitingRequests(
                    group.account,
                    group.endpoint,
                    group.variant,
                    group.component,
                    len(group.waiting),
                )
                for group in state.table.groups.values()
                if group.waiting
            ),
            routed_at_s={t.copy_id: t.routed_at_s for t in targets if t.routed_at_s},
            first_response_s={t.copy_id: t.first_response_s for t in targets if t.first_response_s},
            readings=tuple(readings),
            halves=tuple(halves),
            leaving=leaving,
        )
        try:
            await self._client.report_gateway(report)
        except (Unavailable, AccessDenied) as error:
            self._delivers = False
            state.readings.give_back(readings)
            log.debug("report not delivered", reason=error.reason)
            return False
        self._delivers = True
        return True

    async def _watch(self) -> None:
        failures = 0
        while True:
            try:
                table = self._gateway.state.table
                routes = await self._client.watch_routes(table.version, table.epoch)
            except (Unavailable, AccessDenied) as error:
                failures += 1
                if failures == 1:  # a gateway may be alone for days
                    log.warning("no routes from the control plane", reason=error.reason)
                await asyncio.sleep(RETRY.after(failures))
                continue
            failures = 0
            if routes is not None and _is_newer(routes, self._gateway.state.table):
                self._apply(routes)
                self._urgent.set()
                if self.keeps_routes:
                    await asyncio.to_thread(self._keep, routes)

    def _apply(self, routes: Routes) -> None:
        self._gateway.apply(routes)
        self._routed.set()

    async def _report_always(self) -> None:
        while True:
            now_s = self._gateway.state.clock()
            until_s = HALF_S - now_s % HALF_S + REPORT_LAG_S
            urgent = True
            try:
                async with asyncio.timeout(until_s):
                    await self._urgent.wait()
            except TimeoutError:
                urgent = False  # the second, or its half, is over
            self._urgent.clear()
            await self.report(only_if_busy=not urgent)

    def _keep(self, routes: Routes) -> None:
        # It holds the keys: nobody else may read it.
        try:
            replace_file(self._routes_file, msgspec.json.encode(routes), is_durable=False)
        except OSError as error:
            log.warning("routes are not kept", path=str(self._routes_file), reason=str(error))


def _is_newer(routes: Routes, table: RoutingTable) -> bool:
    """Versions are compared within an epoch; routes of another one come from a control plane that
    started since."""
    return routes.epoch != table.epoch or routes.version > table.version
