"""The paths of the private API that the command line uses: /v1/admin/... on R/control.sock.

The socket is readable by root only, which is the permission to administer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from zeropull.autoscaler.readings import Decision
from zeropull.controlapi.exchange import Exchange
from zeropull.resources.components import InferenceComponent
from zeropull.resources.endpoints import Endpoint
from zeropull.resources.image_caches import ImageCacheRecord
from zeropull.resources.instances import CopyRecord, Instance, TimelineRecord
from zeropull.resources.scaling import COMPONENT_DIMENSION, ScalableTarget, component_of
from zeropull.resources.settings import Settings
from zeropull.statestore import Store


class AdminApi:
    """`teardown` ends every instance; it is called once, by the supervisor."""

    def __init__(
        self,
        store: Store,
        exchange: Exchange,
        settings: Settings,
        teardown: Callable[[], Awaitable[None]],
        decisions: Callable[[], Mapping[str, tuple[str, float, Decision]]],
    ) -> None:
        self._store = store
        self._exchange = exchange
        self._settings = settings
        self._teardown = teardown
        self._decisions = decisions

    def add_routes(self, app: web.Application) -> None:
        app.router.add_get("/v1/admin/status", self._status)
        app.router.add_get("/v1/admin/endpoints/{name}/timeline", self._timeline)
        app.router.add_get("/v1/admin/endpoints/{name}/logs", self._logs)
        app.router.add_post("/v1/admin/teardown", self._do_teardown)

    async def _status(self, request: web.Request) -> web.Response:
        endpoints = [self._endpoint(s.document) for s in self._store.select(Endpoint)]
        return _json(
            {
                "state_dir": str(self._settings.state_dir),
                "run_dir": str(self._settings.run_dir),
                "endpoints": endpoints,
                "gateways": sorted(self._exchange.gateways),
                "damaged": [dataclasses.asdict(each) for each in self._store.damaged()],
                "disk_low": self._store.disk_low(),
            }
        )

    def _endpoint(self, endpoint: Endpoint) -> dict[str, Any]:
        record = self._store.get(ImageCacheRecord, endpoint.uid)
        newest = record.document.newest_published if record else None
        copies = [s.document for s in self._store.select(CopyRecord, endpoint_uid=endpoint.uid)]
        instances = self._store.select(Instance, endpoint_uid=endpoint.uid)
        return {
            "name": endpoint.name,
            "account": endpoint.account,
            "status": endpoint.status.value,
            "failure_reason": endpoint.failure_reason,
            "image_cache": {
                "generation": newest.number if newest else None,
                "images": len(newest.images) if newest else 0,
                "size_bytes": newest.size_bytes if newest else 0,
                "message": record.document.generations[-1].message
                if record and record.document.generations
                else "",
            },
            "scaling": self._scaling(endpoint),
            "components": self._components(endpoint),
            "instances": [
                {
                    "instance_id": i.instance_id,
                    "variant": i.variant,
                    "instance_type": i.instance_type,
                    "state": i.state.value,
                    "reason": i.reason,
                    "failure": i.failure,
                    "copies": [
                        {
                            "copy_id": c.copy_id,
                            "component": c.component,
                            "state": c.state,
                            "restarts": c.restarts,
                            "message": c.message,
                        }
                        for c in copies
                        if c.instance_id == i.instance_id
                    ],
                }
                for i in (s.document for s in instances)
            ],
        }

    def _components(self, endpoint: Endpoint) -> list[dict[str, Any]]:
        """`message`: what failed, or for what copies wait."""
        stored = self._store.select(InferenceComponent, endpoint_uid=endpoint.uid)
        return [
            {
                "name": c.name,
                "status": c.status.value,
                "desired_copies": c.desired_copies,
                "current_copies": c.current_copies,
                "message": c.failure_reason or c.waiting,
            }
            for c in (s.document for s in stored)
        ]

    def _scaling(self, endpoint: Endpoint) -> list[dict[str, Any]]:
        """Every scalable target of the endpoint with its newest decision."""
        components = {component["name"] for component in self._components(endpoint)}
        decisions = self._decisions()
        found = []
        for stored in self._store.select(ScalableTarget, prefix=f"{endpoint.account}/"):
            target = stored.document
            mine = (
                component_of(target.resource_id) in components
                if target.dimension == COMPONENT_DIMENSION
                else target.endpoint_and_variant[0] == endpoint.name
            )
            if not mine:
                continue
            mode, decided_s, decision = decisions.get(target.key, ("", 0.0, None))
            found.append(
                {
                    "resource_id": target.resource_id,
                    "minimum": target.minimum,
                    "maximum": target.maximum,
                    "mode": mode,
                    "decided_s": decided_s,
                    "desired": decision.desired if decision else None,
                    "policy": decision.policy if decision else None,
                    "not_scaled": decision.not_scaled if decision else None,
                    "reason": decision.reason if decision else "no decision yet",
                }
            )
        return found

    async def _timeline(self, request: web.Request) -> web.Response:
        """Launches of the newest endpoint of that name, oldest first; others with `uid=`."""
        records = [
            s.document
            for s in self._store.select(TimelineRecord)
            if s.document.endpoint.lower() == request.match_info["name"].lower()
            and s.document.account == self._account(request)
        ]
        if not records:
            raise web.HTTPNotFound(text=f"no launch of endpoint {request.match_info['name']}")
        uid = request.query.get("uid") or max(records, key=lambda r: r.began_s).endpoint_uid
        launches = sorted(
            (r for r in records if r.endpoint_uid == uid), key=lambda r: (r.began_s, r.copy_id)
        )
        return _json({"endpoint": launches[0].endpoint, "uid": uid, "launches": launches})

    async def _logs(self, request: web.Request) -> web.Response:
        """Folders with the log files of the endpoint's copies: the local fleet's own disk."""
        name = request.match_info["name"].lower()
        found = [
            {
                "copy_id": c.copy_id,
                "instance_id": c.instance_id,
                "variant": c.variant,
                "folder": str(
                    self._settings.state_dir / "instances" / c.instance_id / "logs" / c.copy_id
                ),
            }
            for c in (s.document for s in self._store.select(CopyRecord))
            if c.endpoint.lower() == name and c.account == self._account(request)
        ]
        if not found and not any(
            s.document.name.lower() == name for s in self._store.select(Endpoint)
        ):
            raise web.HTTPNotFound(text=f"there is no endpoint {request.match_info['name']}")
        return _json({"copies": found})

    async def _do_teardown(self, request: web.Request) -> web.Response:
        await self._teardown()
        return web.Response(status=204)

    def _account(self, request: web.Request) -> str:
        return request.query.get("account", self._settings.serve.account)


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
