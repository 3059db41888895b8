"""A control plane without machines: its provider only remembers, and its nodes only report.

`python -m bench.many_nodes --settings FILE --lag FILE` is the real control plane's process (store,
API, private API, reconcilers, scaling) over a provider that gives every instance at once. The nodes
speak the real private API from another process: they watch their assignments and say that every
copy of them is healthy.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec

from zeropull.controlapi.messages import (
    CopyReport,
    CopyState,
    GatewayReport,
    ImageReport,
    NodeAssignment,
    NodeReport,
    Routes,
)
from zeropull.daemons.control_plane import ControlPlane
from zeropull.errors import NotFound
from zeropull.providers.protocol import LaunchRequest, ProvidedInstance, Volume
from zeropull.resources.instances import Instance
from zeropull.resources.settings import Settings
from zeropull.telemetry import configure_logging

LAG_INTERVAL_S = 0.01
REPORT_INTERVAL_S = 5.0
ADDRESS = "127.0.0.1"


class RememberedInstances:
    """A provider whose instances are names. After a start it has those that the store knows."""

    def __init__(self, present: dict[str, ProvidedInstance]) -> None:
        self._present = present

    def prepare(self) -> None:
        """Nothing on this machine is needed."""

    async def launch(self, request: LaunchRequest) -> ProvidedInstance:
        provided = ProvidedInstance(request.instance_id, True, ADDRESS, labels=request.labels)
        self._present[request.instance_id] = provided
        return provided

    async def terminate(self, instance_id: str) -> None:
        self._present.pop(instance_id, None)

    async def list_instances(self) -> list[ProvidedInstance]:
        return list(self._present.values())

    async def attach(self, instance_id: str, volume: Volume) -> str:
        return str(volume.path)

    async def detach(self, instance_id: str, generation: int) -> None:
        """Nothing was attached."""

    async def collect_layer(self, instance_id: str, chain_id: str, into: Path) -> None:
        raise NotFound(f"{instance_id} has no layer {chain_id}")

    async def collect_profile(self, instance_id: str, manifest_digest: str) -> bytes | None:
        return None

    async def heal(self, instance_id: str) -> bool:
        return False

    async def allow_loopback_port(self, port: int) -> None:
        """No node reaches anything."""

    async def keep_loopback_ports(self, ports: object) -> None:
        """None was opened."""

    async def sweep(self, keep: object) -> None:
        """Nothing is left of anything."""

    async def close(self) -> None:
        """Nothing to let go of."""


async def serve(settings: Settings, lag_file: Path) -> None:
    """The control plane until SIGTERM, and how late its loop ran what was due, in seconds."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    plane = ControlPlane(settings)
    await plane.provider.close()
    known = (stored.document for stored in plane.store.select(Instance))
    plane.provider = RememberedInstances(  # type: ignore[assignment]
        {each.instance_id: ProvidedInstance(each.instance_id, True, ADDRESS) for each in known}
    )
    async with plane.serving():
        with lag_file.open("a", buffering=1) as lags:
            due = time.monotonic()
            while not stop.is_set():
                due += LAG_INTERVAL_S
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                now = time.monotonic()
                lags.write(f"{time.time():.3f} {now - due:.6f}\n")
                if plane.failure is not None:
                    raise plane.failure
                due = max(due, now)


@dataclass
class Nodes:
    """Every node of the control plane at `socket`, and one gateway, in this process.

    `report_s`: when each report was sent and how long it took, in seconds.
    """

    socket: Path
    gateway_token: str
    tokens: Callable[[], dict[str, str]]
    report_s: list[tuple[float, float]] = field(default_factory=list)
    failed_reports: int = 0
    _nodes: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        connector = aiohttp.UnixConnector(str(self.socket), limit=0)
        timeout = aiohttp.ClientTimeout(total=60.0)
        async with (
            aiohttp.ClientSession(
                "http://control", connector=connector, timeout=timeout
            ) as session,
            asyncio.TaskGroup() as tasks,
        ):
            every = [
                tasks.create_task(self._follow_instances(session, tasks)),
                tasks.create_task(self._gateway(session)),
            ]
            try:
                yield
            finally:
                for task in [*every, *self._nodes.values()]:
                    task.cancel()

    async def _follow_instances(
        self, session: aiohttp.ClientSession, tasks: asyncio.TaskGroup
    ) -> None:
        while True:
            tokens = await asyncio.to_thread(self.tokens)
            for instance_id in tokens.keys() - self._nodes.keys():
                node = _Node(self, session, instance_id, tokens[instance_id])
                self._nodes[instance_id] = tasks.create_task(node.run())
            for instance_id in self._nodes.keys() - tokens.keys():
                self._nodes.pop(instance_id).cancel()
            await asyncio.sleep(0.5)

    async def _gateway(self, session: aiohttp.ClientSession) -> None:
        headers = {"Authorization": f"Bearer {self.gateway_token}"}
        version, routed = 0, dict[str, float]()
        watch: asyncio.Task[Routes | None] | None = None
        while True:
            if watch is None:
                url = f"/v1/gateway/routes?since={version}"
                watch = asyncio.create_task(_get(session, url, headers, Routes))
            await asyncio.wait({watch}, timeout=1.0)
            if watch.done():
                routes, watch = watch.result(), None
                if routes is not None:
                    version = routes.version
                    targets = {
                        target.copy_id
                        for endpoint in routes.endpoints
                        for variant in endpoint.variants
                        for target in variant.targets
                    }
                    routed = {each: routed.get(each, time.time()) for each in targets}
            report = GatewayReport("bench", version, time.time(), routed_at_s=routed)
            await _post(session, "/v1/gateway/report", headers, report)


class _Node:
    def __init__(
        self, nodes: Nodes, session: aiohttp.ClientSession, instance_id: str, token: str
    ) -> None:
        self._nodes = nodes
        self._session = session
        self._instance_id = instance_id
        self._headers = {"Authorization": f"Bearer {token}"}
        self._started_s = time.time()
        self._healthy_s: dict[str, float] = {}

    async def run(self) -> None:
        assignment: NodeAssignment | None = None
        url = f"/v1/nodes/{self._instance_id}/assignment?since="
        watch = asyncio.create_task(self._watch(f"{url}0"))
        try:
            while True:
                await asyncio.wait({watch}, timeout=REPORT_INTERVAL_S)
                if watch.done():
                    assignment = watch.result() or assignment
                    version = assignment.version if assignment else 0
                    watch = asyncio.create_task(self._watch(f"{url}{version}"))
                if assignment is not None:
                    await self._report(assignment)
        finally:
            watch.cancel()

    async def _watch(self, url: str) -> NodeAssignment | None:
        return await _get(self._session, url, self._headers, NodeAssignment)

    async def _report(self, assignment: NodeAssignment) -> None:
        now_s = time.time()
        copies = []
        for copy in assignment.copies:
            if copy.desired == "run":
                healthy_s = self._healthy_s.setdefault(copy.copy_id, now_s)
                copies.append(
                    CopyReport(
                        copy.copy_id, CopyState.HEALTHY, host=ADDRESS, healthy_at_s=healthy_s
                    )
                )
            else:
                copies.append(CopyReport(copy.copy_id, CopyState.STOPPED))
        report = NodeReport(
            self._instance_id,
            assignment.version,
            now_s,
            self._started_s,
            tuple(copies),
            tuple(
                ImageReport(image.manifest_digest, False, on_node=True)
                for image in assignment.images
            ),
        )
        url = f"/v1/nodes/{self._instance_id}/report"
        began = time.monotonic()
        if await _post(self._session, url, self._headers, report):
            self._nodes.report_s.append((now_s, time.monotonic() - began))
        else:
            self._nodes.failed_reports += 1


async def _get(session, url, headers, kind):  # type: ignore[no-untyped-def]
    try:
        async with session.get(url, headers=headers) as answer:
            body = await answer.read()
    except (aiohttp.ClientError, RuntimeError, TimeoutError):  # RuntimeError: closed meanwhile
        await asyncio.sleep(1.0)
        return None
    return msgspec.json.decode(body, type=kind) if answer.status == 200 else None


async def _post(
    session: aiohttp.ClientSession,
    url: str,
    headers: dict[str, str],
    message: NodeReport | GatewayReport,
) -> bool:
    try:
        body = msgspec.json.encode(message)
        async with session.post(url, headers=headers, data=body) as answer:
            return answer.status in (200, 204)
    except (aiohttp.ClientError, TimeoutError):
        return False


def _serve_process() -> None:
    parser = argparse.ArgumentParser(prog="bench.many_nodes")
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--lag", type=Path, required=True)
    options = parser.parse_args()
    settings = msgspec.convert(json.loads(options.settings.read_text()), type=Settings)
    configure_logging("controlplane", level=settings.serve.log_level)
    asyncio.run(serve(settings, options.lag))


if __name__ == "__main__":
    _serve_process()
