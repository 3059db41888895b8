"""The control plane's side of the private API (`zeropull.controlapi.messages`), on aiohttp."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.messages import LONG_POLL_S, GatewayReport, NodeReport
from zeropull.telemetry import get_logger

MAX_REPORT_BYTES = 32 << 20

Report = TypeVar("Report")

log = get_logger(__name__)


class ControlServer:
    """Serves one exchange. `node_token` gives an instance's token, None when there is none."""

    def __init__(
        self,
        exchange: Exchange,
        *,
        node_token: Callable[[str], str | None],
        gateway_token: str,
        clock: Callable[[], float] = time.time,
        long_poll_s: float = LONG_POLL_S,
    ) -> None:
        self._exchange = exchange
        self._node_token = node_token
        self._gateway_token = gateway_token
        self._clock = clock
        self._long_poll_s = long_poll_s

    def app(self) -> web.Application:
        """A new application; the caller may add routes of its own before it is started."""
        app = web.Application(client_max_size=MAX_REPORT_BYTES)
        app.router.add_get("/v1/nodes/{instance_id}/assignment", self._watch_assignment)
        app.router.add_post("/v1/nodes/{instance_id}/report", self._take_node_report)
        app.router.add_get("/v1/gateway/routes", self._watch_routes)
        app.router.add_post("/v1/gateway/report", self._take_gateway_report)
        return app

    async def _watch_assignment(self, request: web.Request) -> web.Response:
        instance_id = self._authenticated_node(request)
        assignment = await self._exchange.watch_assignment(
            instance_id, _since(request), self._long_poll_s, request.query.get("epoch", "")
        )
        return _answer(assignment)

    async def _take_node_report(self, request: web.Request) -> web.Response:
        instance_id = self._authenticated_node(request)
        report = _decoded(await request.read(), NodeReport)
        if report.instance_id != instance_id:
            raise web.HTTPForbidden(text=f"{instance_id} cannot report for {report.instance_id}")
        self._exchange.take_node_report(report, self._clock())
        return web.Response(status=204)

    async def _watch_routes(self, request: web.Request) -> web.Response:
        self._authenticate(request, self._gateway_token)
        epoch = request.query.get("epoch", "")
        return _answer(await self._exchange.watch_routes(_since(request), self._long_poll_s, epoch))

    async def _take_gateway_report(self, request: web.Request) -> web.Response:
        self._authenticate(request, self._gateway_token)
        report = _decoded(await request.read(), GatewayReport)
        self._exchange.take_gateway_report(report, self._clock())
        return web.Response(status=204)

    def _authenticated_node(self, request: web.Request) -> str:
        instance_id = request.match_info["instance_id"]
        # An unknown instance gets the answer of a wrong token: strangers learn no names.
        self._authenticate(request, self._node_token(instance_id))
        return instance_id

    @staticmethod
    def _authenticate(request: web.Request, token: str | None) -> None:
        given = request.headers.get("Authorization", "").encode()
        if not token or not hmac.compare_digest(given, f"Bearer {token}".encode()):
            log.warning("private API call refused", path=request.path)
            raise web.HTTPUnauthorized(text="wrong or missing bearer token")


def _since(request: web.Request) -> int:
    try:
        return int(request.query.get("since", "0"))
    except ValueError:
        raise web.HTTPBadRequest(text="since must be a number") from None


def _answer(message: Any) -> web.Response:
    if message is None:
        return web.Response(status=204)
    return web.Response(body=msgspec.json.encode(message), content_type="application/json")


def _decoded(body: bytes, kind: type[Report]) -> Report:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise web.HTTPBadRequest(text=str(error)) from error
