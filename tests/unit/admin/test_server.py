"""The admin API over its real socket, with the client of the commands."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from aiohttp import web

from zeropull.admin.client import AdminClient
from zeropull.admin.messages import CacheStatus, CopyStatus, TargetStatus
from zeropull.admin.server import AdminServer
from zeropull.autoscaler.readings import Decision, NotScaled
from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.messages import CopyState
from zeropull.controlapi.server import ControlServer
from zeropull.errors import Unavailable
from zeropull.resources.endpoints import Endpoint, EndpointStatus
from zeropull.resources.instances import CopyRecord, Instance, InstanceState, TimelineRecord
from zeropull.resources.scaling import VARIANT_DIMENSION, ScalableTarget
from zeropull.resources.settings import ServeSettings, Settings
from zeropull.statestore import Store

ACCOUNT = "000000000000"
T = TypeVar("T")


@dataclass
class Admin:
    store: Store
    settings: Settings
    client: AdminClient
    torn_down: int = 0
    decisions: dict[str, tuple[str, float, Decision]] = field(default_factory=dict)

    async def tear_down(self) -> None:
        self.torn_down += 1

    async def ask(self, call: Callable[[], T]) -> T:
        return await asyncio.to_thread(call)


@pytest.fixture
async def admin() -> AsyncIterator[Admin]:
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "s.db") as store:
        serve = ServeSettings(state_dir=folder, run_dir=folder, account=ACCOUNT)
        settings = Settings(serve=serve)
        made = Admin(store, settings, AdminClient(settings, timeout_s=20.0))
        exchange = Exchange()
        server = AdminServer(store, exchange, settings, made.tear_down, lambda: made.decisions)
        control = ControlServer(exchange, node_token=lambda _: "node", gateway_token="gateway")
        async with (
            _listening(server.app(), settings.admin_socket),
            _listening(control.app(), settings.control_socket),
        ):
            yield made


class _listening:
    def __init__(self, app: web.Application, path: Path) -> None:
        self._runner, self._path = web.AppRunner(app, access_log=None), path

    async def __aenter__(self) -> None:
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self._path)).start()

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


def put_endpoint(store: Store, name: str = "demo", uid: str = "uid-1") -> Endpoint:
    endpoint = Endpoint(
        ACCOUNT, name, f"arn:{name}", uid, EndpointStatus.IN_SERVICE, 1.0, 1.0, failure_reason="why"
    )
    store.put(endpoint)
    store.put(
        Instance(
            "i-1", ACCOUNT, uid, name, "main", "ml.g5.xlarge", "d", InstanceState.RUNNING,
            "token", 1.0, reason="scale out",
        )
    )  # fmt: skip
    store.put(
        CopyRecord(
            "c-1", "i-1", ACCOUNT, uid, name, "main", "d", 1.0, state="healthy", message="fine"
        )
    )
    return endpoint


async def test_a_status_has_endpoints_instances_copies_and_decisions(admin: Admin) -> None:
    put_endpoint(admin.store)
    target = ScalableTarget(
        ACCOUNT, "endpoint/demo/variant/main", VARIANT_DIMENSION, 1, 4, "arn", 1.0
    )
    admin.store.put(target)
    decision = Decision(2, "2 of 4 are enough", "policy", NotScaled.COOLING_DOWN)
    admin.decisions[target.key] = ("fast", 7.0, decision)
    found = await admin.ask(admin.client.status)
    (endpoint,) = found.endpoints
    assert (endpoint.name, endpoint.status) == ("demo", EndpointStatus.IN_SERVICE)
    assert endpoint.image_cache == CacheStatus(None, 0, 0, "")
    assert endpoint.scaling == (
        TargetStatus(
            target.resource_id, 1, 4, "fast", 7.0, 2, "policy", NotScaled.COOLING_DOWN,
            "2 of 4 are enough",
        ),
    )  # fmt: skip
    (instance,) = endpoint.instances
    assert (instance.state, instance.reason) == (InstanceState.RUNNING, "scale out")
    assert instance.copies == (CopyStatus("c-1", None, CopyState.HEALTHY, 0, "fine"),)


async def test_a_timeline_is_that_of_the_newest_endpoint_of_the_name(admin: Admin) -> None:
    for uid, began_s in (("old", 1.0), ("new", 5.0), ("new", 4.0)):
        admin.store.put(
            TimelineRecord(
                f"c-{began_s}", "i-1", ACCOUNT, uid, "Demo", "main", "d", "ml.g5.xlarge", began_s
            )
        )
    found = await admin.ask(lambda: admin.client.timeline("demo"))
    assert (found.endpoint, found.uid) == ("Demo", "new")
    assert [launch.began_s for launch in found.launches] == [4.0, 5.0]
    with pytest.raises(Unavailable, match="there is no launch of endpoint other/one"):
        await admin.ask(lambda: admin.client.timeline("other/one"))
    with pytest.raises(Unavailable, match="there is no launch"):
        await admin.ask(lambda: admin.client.timeline("demo", "111111111111"))


async def test_logs_lie_on_the_disks_of_the_instances(admin: Admin) -> None:
    put_endpoint(admin.store)
    found = await admin.ask(lambda: admin.client.log_folders("DEMO"))
    (folder,) = found.copies
    assert folder.folder == f"{admin.settings.state_dir}/instances/i-1/logs/c-1"
    with pytest.raises(Unavailable, match="there is no endpoint other"):
        await admin.ask(lambda: admin.client.log_folders("other"))


async def test_a_tear_down_is_done_when_the_call_returns(admin: Admin) -> None:
    await admin.ask(admin.client.tear_down)
    assert admin.torn_down == 1


@pytest.mark.parametrize("token", ["node", "gateway"])
async def test_the_socket_of_nodes_and_gateways_has_no_way_to_the_admin_api(
    admin: Admin, token: str
) -> None:
    import aiohttp

    connector = aiohttp.UnixConnector(str(admin.settings.control_socket))
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession("http://control", connector=connector) as session:
        for path in ("teardown", "nodes/../admin/teardown", "..%2fadmin%2fteardown"):
            async with session.post(f"/v1/admin/{path}", headers=headers) as answer:
                assert answer.status in (404, 405)
        async with session.get("/v1/admin/status", headers=headers) as answer:
            assert answer.status == 404
    assert admin.torn_down == 0


async def test_nobody_there_is_said_with_the_socket(tmp_path: Path) -> None:
    settings = Settings(serve=ServeSettings(state_dir=str(tmp_path), run_dir=str(tmp_path)))
    with pytest.raises(Unavailable, match=r"admin\.sock: is `zeropull serve` running\?"):
        AdminClient(settings, timeout_s=1.0).status()


async def test_an_answer_of_another_version_is_told_as_such(admin: Admin) -> None:
    async def odd(_: web.Request) -> web.Response:
        return web.json_response({"endpoints": "none"})

    app = web.Application()
    app.router.add_get("/v1/admin/status", odd)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(serve=ServeSettings(state_dir=folder, run_dir=folder))
        async with _listening(app, settings.admin_socket):
            with pytest.raises(Unavailable, match="another version"):
                await asyncio.to_thread(AdminClient(settings, timeout_s=20.0).status)
