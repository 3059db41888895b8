"""A real node of the local fleet with a real registry; the control plane's side is in-process."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.fixtures.images import Entry, Image, make_image, make_layer, push_image
from tests.fixtures.local_fleet import left_behind
from tests.fixtures.registry import Registry, running_registry
from tests.fixtures.server_image import python_server_image
from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.messages import (
    CopyAssignment,
    CopyReport,
    CopyState,
    ImageAssignment,
    NodeAssignment,
    NodeReport,
    VolumeMount,
)
from zeropull.controlapi.server import ControlServer
from zeropull.imagecache.layout import CachedImage, GenerationIndex
from zeropull.layers.layout import encode_document
from zeropull.oci.digests import digest_of, hex_of
from zeropull.providers.local import LocalProvider
from zeropull.providers.local.names import FleetNames, InstanceNames
from zeropull.providers.local.processes import daemon_pid
from zeropull.providers.protocol import LaunchRequest, MachineShape, Volume
from zeropull.resources.settings import FleetSettings

TOKEN = "token-of-the-tests"
DEVICE_KIND = "tests.invalid/probe"
FIGURES_S = 0.5


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
                    # Figures alone wake nobody up.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(FIGURES_S):
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

    async def launch(
        self,
        *volumes: Volume,
        disk_bytes: int | None = None,
        bits_per_s: int | None = None,
        devices: int = 0,
    ) -> Node:
        """A node of two cores and 2 GiB. `devices`: how many of `DEVICE_KIND` it gets."""
        self.count += 1
        instance_id = f"i-{os.getpid():08x}{self.count:09x}"
        shape = MachineShape("ml.test", 2, 2 << 30, devices, DEVICE_KIND, bits_per_s)
        request = LaunchRequest(instance_id, shape, TOKEN, volumes, disk_bytes)
        await self.provider.launch(request)
        return Node(instance_id, self.provider, self.exchange, self.root, self.run_dir)


@dataclass(frozen=True)
class Generation:
    """A cache volume, and the chain IDs of the image in it."""

    volume: Volume
    chain_ids: tuple[str, ...]

    def layer(self, number: int) -> Path:
        return self.volume.path / "layers" / hex_of(self.chain_ids[number])

    def copied(self, into: Path) -> Generation:
        """One that a test may damage."""
        shutil.copytree(self.volume.path, into)
        return Generation(Volume(1, into, self.volume.index_digest), self.chain_ids)


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    with running_registry() as running:
        yield running


@pytest.fixture(scope="session")
def server_image(registry: Registry) -> ImageAssignment:
    digest = push_image(registry.direct, "server", "v1", python_server_image())
    return ImageAssignment(f"{registry.address}/server:v1", digest)


@pytest.fixture(scope="session")
def probe_image(registry: Registry) -> ImageAssignment:
    return push(registry, "probe", probe())


def probe(
    *, config: dict[str, object] | None = None, extra: Sequence[Entry] = (), tag: str = ""
) -> Image:
    """The tests' server image with the probe in place of the server. `config` and `extra` files
    on top; `tag` makes it another image."""
    base = python_server_image()
    interpreter = str(Path("/usr/bin/python3").resolve())
    script = Path(__file__).parents[2] / "fixtures" / "probe.py"
    entries = [Entry("srv/probe.py", script.read_bytes()), *_ctypes(Path(interpreter)), *extra]
    layer = make_layer(entries)
    settings: dict[str, object] = {
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "OF_THE_IMAGE=1", f"TAG={tag}"],
        "Entrypoint": [interpreter, "-I", "/srv/probe.py"],
        "WorkingDir": "/srv",
    }
    return make_image([*base.layers, layer], {**settings, **(config or {})})


def _ctypes(interpreter: Path) -> list[Entry]:
    """The module by which the probe makes system calls; the server's image has no need of it."""
    modules = Path(f"/usr/lib/{interpreter.name}/lib-dynload").glob("_ctypes.*.so")
    libraries = Path("/usr/lib").glob("*-linux-gnu/libffi.so.?")
    found = [*modules, *libraries]
    return [Entry(str(path)[1:], path.resolve().read_bytes(), mode=0o755) for path in found]


def push(
    registry: Registry,
    name: str,
    image: Image,
    credentials: tuple[str, str] | None = None,
) -> ImageAssignment:
    digest = push_image(registry.direct, name, "v1", image, credentials=credentials)
    return ImageAssignment(f"{registry.address}/{name}:v1", digest)


@pytest.fixture(scope="session")
def pulled(registry: Registry, server_image: ImageAssignment) -> Iterator[Generation]:
    """A generation of `server_image`, built from a node's first pull; not to be changed."""
    folder = Path(tempfile.mkdtemp(prefix="zp-agent-generation-"))

    async def pull() -> Generation:
        async with running_fleet(registry) as fleet:
            node = await fleet.launch()
            node.assign(assignment_of(server_image, copy_of(server_image, "first")))
            await node.until_copy("first", CopyState.HEALTHY)
            await node.until(lambda report: bool(report.images) and report.images[0].complete)
            volume = build_generation(node, server_image, folder / "1")
            assert node.report is not None
            return Generation(volume, node.report.images[0].chain_ids)

    try:
        # In a thread, since tests have loops of their own.
        with ThreadPoolExecutor(1) as thread:
            yield thread.submit(asyncio.run, pull()).result()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def fleet(registry: Registry) -> AsyncIterator[Fleet]:
    async with running_fleet(registry) as running:
        yield running


@contextlib.asynccontextmanager
async def running_fleet(
    registry: Registry, *, snapshotter_command: Sequence[str] | None = None, **settings: Any
) -> AsyncIterator[Fleet]:
    """A fleet and the control plane's side of it; nothing of it may be left afterwards. `settings`
    are members of FleetSettings."""
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
    fleet_settings = FleetSettings(
        loopback_ports=(port,), limit_network=True, cdi_dirs=(str(root / "cdi"),), **settings
    )
    provider = LocalProvider(
        fleet_settings, root / "state", run_dir, snapshotter_command=snapshotter_command
    )
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


async def ask(copy: CopyReport, **what: object) -> Any:
    """What the probe in the copy's container answers."""
    timeout = aiohttp.ClientTimeout(total=30)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(f"http://{copy.host}:{copy.port}/invocations", json=what) as answer,
    ):
        return await answer.json(content_type=None)


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


def mounted(node: Node, volume: Volume) -> VolumeMount:
    """As the node's assignment names it."""
    path = node.disk / "volumes" / str(volume.generation)
    return VolumeMount(volume.generation, str(path), volume.index_digest)


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
    content = encode_document(GenerationIndex(1, "e-1", time.time(), (cached,), layers))
    (into / "generation.json").write_bytes(content)
    return Volume(1, into, digest_of(content))
