"""The admin API: /v1/admin/... on R/admin.sock, for commands and the supervisor.

Only root can open the socket: that is the permission to administer. Nodes and gateways call another
socket, which has no way to the tear-down.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from zeropull.admin.messages import DamagedState, LogFolder, LogFolders, Status, Timeline
from zeropull.admin.status import Decisions, endpoint_state
from zeropull.controlapi.exchange import Exchange
from zeropull.resources.endpoints import Endpoint
from zeropull.resources.instances import CopyRecord, TimelineRecord
from zeropull.resources.settings import Settings
from zeropull.statestore import Store


class AdminServer:
    """`teardown` ends every instance; the supervisor asks for it once. `decisions` gives the newest
    decision for every scalable target."""

    def __init__(
        self,
        store: Store,
        exchange: Exchange,
        settings: Settings,
        teardown: Callable[[], Awaitable[None]],
        decisions: Callable[[], Decisions],
    ) -> None:
        self._store = store
        self._exchange = exchange
        self._settings = settings
        self._teardown = teardown
        self._decisions = decisions

    def app(self) -> web.Application:
        """A new application."""
        app = web.Application()
        app.router.add_get("/v1/admin/status", self._status)
        app.router.add_get("/v1/admin/endpoints/{name}/timeline", self._timeline)
        app.router.add_get("/v1/admin/endpoints/{name}/logs", self._logs)
        app.router.add_post("/v1/admin/teardown", self._do_teardown)
        return app

    async def _status(self, request: web.Request) -> web.Response:
        decisions = self._decisions()
        endpoints = [s.document for s in self._store.select(Endpoint)]
        return _json(
            Status(
                state_dir=str(self._settings.state_dir),
                run_dir=str(self._settings.run_dir),
                endpoints=tuple(endpoint_state(self._store, e, decisions) for e in endpoints),
                gateways=tuple(sorted(self._exchange.gateways)),
                damaged=tuple(
                    DamagedState(each.kind, each.key, each.reason, each.found_s)
                    for each in self._store.damaged()
                ),
                disk_low=self._store.disk_low(),
            )
        )

    async def _timeline(self, request: web.Request) -> web.Response:
        """Launches of the newest endpoint of that name. `uid=` chooses an earlier endpoint."""
        name, account = request.match_info["name"], self._account(request)
        records = [
            s.document
            for s in self._store.select(TimelineRecord)
            if s.document.endpoint.lower() == name.lower() and s.document.account == account
        ]
        if not records:
            raise web.HTTPNotFound(text=f"there is no launch of endpoint {name}")
        uid = request.query.get("uid") or max(records, key=lambda r: r.began_s).endpoint_uid
        launches = sorted(
            (r for r in records if r.endpoint_uid == uid), key=lambda r: (r.began_s, r.copy_id)
        )
        if not launches:
            raise web.HTTPNotFound(text=f"there is no endpoint {name} with the uid {uid}")
        return _json(Timeline(launches[0].endpoint, uid, tuple(launches)))

    async def _logs(self, request: web.Request) -> web.Response:
        """Folders on the local fleet's own disk."""
        name, account = request.match_info["name"].lower(), self._account(request)
        instances = self._settings.state_dir / "instances"
        found = tuple(
            LogFolder(
                c.copy_id,
                c.instance_id,
                c.variant,
                str(instances / c.instance_id / "logs" / c.copy_id),
            )
            for c in (s.document for s in self._store.select(CopyRecord))
            if c.endpoint.lower() == name and c.account == account
        )
        endpoints = (s.document for s in self._store.select(Endpoint))
        if not found and not any(each.name.lower() == name for each in endpoints):
            raise web.HTTPNotFound(text=f"there is no endpoint {request.match_info['name']}")
        return _json(LogFolders(found))

    async def _do_teardown(self, request: web.Request) -> web.Response:
        await self._teardown()
        return web.Response(status=204)

    def _account(self, request: web.Request) -> str:
        return request.query.get("account", self._settings.serve.account)


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
