"""A real node of the local fleet with a real registry; the control plane's side is in-process."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web

from tests.fixtures.images import push_image
from tests.fixtures.localfleet import left_behind
from tests.fixtures.registry import Registry, running_registry
from tests.fixtures.serverimage import python_server_image
from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.messages import (
    CopyAssignment,
    CopyReport,
    CopyState,
    ImageAssignment,
    NodeAssignment,
    NodeReport,
)
from zeropull.controlapi.server import ControlServer
from zeropull.imagecache.layout import CachedImage, GenerationIndex, encode_index
from zeropull.oci.digests import digest_of, hex_of
from zeropull.providers.local import LocalProvider
from zeropull.providers.local.names import FleetNames, InstanceNames
from zeropull.providers.local.processes import daemon_pid
from zeropull.providers.protocol import LaunchRequest, MachineShape, Volume
from zeropull.resources.settings import FleetSettings

TOKEN = "token-of-the-tests"


@dataclass
class Node:
    """One instance and what the control plane would know of it."""

    instance_id: str
    provider: LocalProvider
    exchange: Exchange
    root: Path
    run_dir: Path

    @property
    def disk(self) -> Path:
        return self.names.disk_dir

    def assign(self, assignment: NodeAssignment) -> None:
        self.exchange.publish_assignment(
            dataclasses.replace(assignment, instance_id=self.instance_id), time.time()
        )

    @property
    def report(self) -> NodeReport | None:
        received = self.exchange.nodes.get(self.instance_id)
        return received.report if received else None

    def copy(self, copy_id: str) -> CopyReport | None:
        copies = self.report.copies if self.report else ()
        return next((each for each in copies if each.copy_id == copy_id), None)

    async def until(
        self, holds: Callable[[NodeReport], bool], timeout_s: float = 30.0
    ) -> NodeReport:
        """The first report for which `holds`; a failure shows the last one."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    self.exchange.reported.clear()
                    if self.report is not None and holds(self.report):
                        return self.report
                    await self.exchange.reported.wait()
        except TimeoutError:
            logs = self.disk / "logs"
            said = [p.read_text(errors="replace")[-3000:] for p in logs.glob("*agent*.log")]
            raise AssertionError(f"it did not happen; last report: {self.report}\n{said}") from None

    async def until_copy(
        self, copy_id: str, *states: CopyState, timeout_s: float = 30.0
    ) -> CopyReport:
        """The copy's report once it is in one of `states`."""

        def holds(report: NodeReport) -> bool:
            return any(c.copy_id == copy_id and c.state in states for c in report.copies)

        await self.until(holds, timeout_s)
        found = self.copy(copy_id)
        assert found is not None
        return found

    async def kill(self, role: str) -> None:
        """SIGKILL one of the node's daemons; returns when it is gone.

        A process is listed as alive for a moment after its signal, and a repair in that moment
        finds nothing to do."""
        pid = daemon_pid(self.names, role)
        assert pid is not None, f"no {role} runs"
        await kill_process(pid)

    @property
    def names(self) -> InstanceNames:
        return FleetNames(self.root / "state", self.run_dir).instance(self.instance_id)


@dataclass
class Fleet:
    """Launches nodes below one state directory."""

    root: Path
    provider: LocalProvider
    exchange: Exchange
    run_dir: Path
    count: int = 0

    async def launch(self, *volumes: Volume) -> Node:
        self.count += 1
        instance_id = f"i-{os.getpid():08x}{self.count:09x}"
        shape = MachineShape("ml.test", vcpus=2, memory_bytes=2 << 30)
        await self.provider.launch(LaunchRequest(instance_id, shape, TOKEN, volumes))
        return Node(instance_id, self.provider, self.exchange, self.root, self.run_dir)


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    with running_registry() as running:
        yield running


@pytest.fixture(scope="session")
def server_image(registry: Registry) -> ImageAssignment:
    digest = push_image(registry.direct, "server", "v1", python_server_image())
    return ImageAssignment(f"{registry.address}/server:v1", digest)


@pytest.fixture
async def fleet(registry: Registry) -> AsyncIterator[Fleet]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    root = Path(tempfile.mkdtemp(prefix="zp-agent-"))
    run_dir = Path(tempfile.mkdtemp(prefix="zp", dir="/run"))
    exchange = Exchange()
    server = ControlServer(exchange, node_token=lambda _: TOKEN, gateway_token="gateway")
    runner = web.AppRunner(server.app(), shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(run_dir / "control.sock")).start()
    port = int(registry.address.rpartition(":")[2])
    provider = LocalProvider(FleetSettings(loopback_ports=(port,)), root / "state", run_dir)
    try:
        yield Fleet(root, provider, exchange, run_dir)
    finally:
        registry.switch_on()
        for instance in await provider.list_instances():
            await provider.terminate(instance.instance_id)
        await provider.close()
        await runner.cleanup()
        left = await asyncio.to_thread(left_behind, FleetNames(root / "state", run_dir))
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(run_dir, ignore_errors=True)
    assert left == {}


async def kill_process(pid: int) -> None:
    """SIGKILL, and wait until the process has ended."""
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, ended.set)
        try:
            async with asyncio.timeout(10):
                await ended.wait()
        finally:
            asyncio.get_running_loop().remove_reader(descriptor)
    finally:
        os.close(descriptor)


def assignment_of(
    image: ImageAssignment, *copies: CopyAssignment, **others: object
) -> NodeAssignment:
    values = {"images": (image,), **others}
    return NodeAssignment(version=0, instance_id="", copies=copies, **values)  # type: ignore[arg-type]


def copy_of(image: ImageAssignment, copy_id: str, **others: object) -> CopyAssignment:
    return CopyAssignment(copy_id, image.manifest_digest, stop_grace_s=2.0, **others)  # type: ignore[arg-type]


def build_generation(node: Node, image: ImageAssignment, into: Path) -> Volume:
    """A generation of the layers that the node has pulled."""
    report = node.report
    assert report is not None
    (state,) = [each for each in report.images if each.manifest_digest == image.manifest_digest]
    assert state.complete
    (into / "layers").mkdir(parents=True)
    (into / "blobs").mkdir()
    layers = {}
    for chain_id in state.chain_ids:
        target = into / "layers" / hex_of(chain_id)
        shutil.copytree(node.disk / "layers" / hex_of(chain_id), target)
        layers[chain_id] = digest_of((target / "layer.json").read_bytes())
    for blob in (node.disk / "agent/blobs").iterdir():
        shutil.copy(blob, into / "blobs" / blob.name)
    manifest = (into / "blobs" / hex_of(image.manifest_digest)).read_bytes()
    parsed = json.loads(manifest)
    cached = CachedImage(
        image.manifest_digest,
        image.reference,
        parsed["mediaType"],
        parsed["config"]["digest"],
        state.chain_ids,
    )
    content = encode_index(GenerationIndex(1, "e-1", time.time(), (cached,), layers))
    (into / "generation.json").write_bytes(content)
    return Volume(1, into, digest_of(content))
