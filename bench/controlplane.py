"""The control plane with many nodes: rounds, the loop, reports, the API, memory and disk.

    ./run bench controlplane [--endpoints 200] [--nodes 1000] [--copies 10000] [--json FILE]

The control plane is the real process with its real store, API and private API; nodes are
connections that watch and report as node agents do (`bench.many_nodes`). Each endpoint has five
inference components. Endpoints and components are created through the API, signed. Then:

- idle      nothing changes for 30 seconds: what a round takes, and how much of a core everything;
- change    one component a second gets another number of copies: what a round with a change takes;
- all the while, how late the event loop runs what is due, how long a node waits for the answer to
  its report, and how long DescribeEndpoint and UpdateInferenceComponentRuntimeConfig take;
- start     the process is started again on that state: until its API answers and rounds go on.

Every figure is of the process that has all copies, one run. A round's time is what the control
plane itself writes to its log.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from rich.console import Console
from rich.table import Table

from bench.many_nodes import Nodes
from tests.fixtures.images import make_image, push_image
from tests.fixtures.registry import running_registry
from zeropull import __version__
from zeropull.resources.components import ComponentStatus, InferenceComponent
from zeropull.resources.documents import Document
from zeropull.resources.instances import Instance, InstanceState
from zeropull.resources.settings import (
    ImageCacheSettings,
    InstanceTypeSettings,
    ServeSettings,
    Settings,
)
from zeropull.statestore.bodies import unpacked

D = TypeVar("D", bound=Document)
TYPE = "ml.bench.large"
ROLE = "arn:aws:iam::000000000000:role/bench"
COMPONENTS = 5  # of each endpoint
IDLE_S, CHANGE_S = 30.0, 30.0
SETTLE_S = 1_800.0
TOKEN = "bench-gateway-token"
GOALS = {
    "idle_round_ms": 20.0,
    "change_round_ms": 50.0,
    "loop_lag_p99_ms": 50.0,
    "report_p99_ms": 300.0,
    "api_p99_ms": 100.0,
    "cpu_share": 0.5,
    "start_s": 10.0,
    "db_bytes_per_copy": 2048.0,
}
console = Console()


@dataclass(frozen=True)
class Run:
    endpoints: int
    copies: int
    nodes: int
    idle_round_ms: float
    change_round_ms: float
    loop_lag_p99_ms: float
    report_p99_ms: float
    api_p99_ms: float
    cpu_share: float
    rss_mb: float
    db_bytes: int
    start_s: float
    create_s: float
    failed_reports: int

    @property
    def db_bytes_per_copy(self) -> float:
        return self.db_bytes / max(1, self.copies)


class Process:
    """The control plane's process, its log and its figures."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._file = folder / "settings.json"
        self._file.write_bytes(msgspec.json.encode(settings))
        self.log, self.lag = folder / "log", folder / "lag"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "bench.many_nodes"),
                    *("--settings", str(self._file), "--lag", str(self.lag)),
                ],
                stdout=log,
                stderr=log,
            )

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60.0)
            self._process = None

    def cpu_s(self) -> float:
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mb(self) -> float:
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def rounds_ms(self, since_s: float) -> tuple[list[float], list[float]]:
        """Rounds since then: those that planned nothing, and those that planned something."""
        idle, changed = [], []
        for line in self.log.read_text().splitlines():
            with contextlib.suppress(ValueError, KeyError):
                entry = json.loads(line)
                if entry["event"] == "round" and entry["at_s"] >= since_s:
                    (changed if entry["planned"] else idle).append(entry["ms"])
        return idle, changed

    def lags_ms(self, since_s: float) -> list[float]:
        rows = (line.split() for line in self.lag.read_text().splitlines())
        return [float(row[1]) * 1e3 for row in rows if len(row) == 2 and float(row[0]) >= since_s]


class Api:
    """Signed calls over the control plane's own socket; every call's time is kept, in seconds."""

    def __init__(self, settings: Settings) -> None:
        lines = (settings.state_dir / "credentials").read_text().splitlines()
        found = dict(line.split(" = ") for line in lines if " = " in line)
        self._signer = SigV4Auth(
            Credentials(found["aws_access_key_id"], found["aws_secret_access_key"]),
            "sagemaker",
            settings.serve.region,
        )
        self._session = aiohttp.ClientSession(
            "http://127.0.0.1", connector=aiohttp.UnixConnector(str(settings.api_socket))
        )
        self.times_s: list[float] = []

    async def close(self) -> None:
        await self._session.close()

    async def call(self, operation: str, **members: Any) -> dict[str, Any]:
        body = json.dumps(members).encode()
        headers = {
            "Content-Type": "application/x-amz-json-1.1",
            "X-Amz-Target": f"SageMaker.{operation}",
        }
        request = AWSRequest("POST", "http://127.0.0.1/", headers, body)
        self._signer.add_auth(request)
        began = time.monotonic()
        async with self._session.post("/", data=body, headers=dict(request.headers)) as answer:
            content = await answer.read()
        self.times_s.append(time.monotonic() - began)
        if answer.status != 200:
            raise RuntimeError(f"{operation}: {answer.status} {content!r}")
        return dict(json.loads(content or b"{}"))


async def measure(options: argparse.Namespace, folder: Path, registry: str) -> Run:
    per_endpoint = options.nodes // options.endpoints
    copies = options.copies // options.endpoints // COMPONENTS
    settings = Settings(
        serve=ServeSettings(
            state_dir=str(folder / "state"), run_dir=str(folder / "run"), log_level="debug"
        ),
        instance_types={TYPE: InstanceTypeSettings(vcpus=64, memory_gib=256)},
        image_cache=ImageCacheSettings(enabled=False),
        gateway_token=TOKEN,
    )
    (folder / "run").mkdir()
    process = Process(settings, folder)
    process.start()
    try:
        await _answers(settings)
        nodes = Nodes(settings.control_socket, TOKEN, lambda: _tokens(settings))
        api = Api(settings)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(api.close)
            await stack.enter_async_context(nodes.running())
            began = time.monotonic()
            await _create(api, options.endpoints, per_endpoint, copies, registry)
            await _settle(settings, options.endpoints * COMPONENTS)
            create_s = time.monotonic() - began
            await asyncio.sleep(10.0)
            run = await _observe(process, api, nodes, settings, options)
        process.stop()
        began = time.monotonic()
        process.start()
        started_s = time.time()
        async with nodes.running():
            await _answers(settings)
            while not any(process.rounds_ms(started_s)):  # noqa: ASYNC110 # another process logs
                await asyncio.sleep(0.05)
        return replace(run, start_s=time.monotonic() - began, create_s=create_s)
    finally:
        process.stop()


async def _observe(
    process: Process, api: Api, nodes: Nodes, settings: Settings, options: argparse.Namespace
) -> Run:
    api.times_s.clear()
    since_s, cpu_s = time.time(), process.cpu_s()
    end = time.monotonic() + IDLE_S
    number = 0
    while time.monotonic() < end:
        await api.call("DescribeEndpoint", EndpointName=f"e{number % options.endpoints}")
        number += 1
        await asyncio.sleep(0.1)
    cpu_share = (process.cpu_s() - cpu_s) / (time.time() - since_s)
    idle, _ = process.rounds_ms(since_s)
    change_s = time.time()
    wanted = options.copies // options.endpoints // COMPONENTS
    end = time.monotonic() + CHANGE_S
    while time.monotonic() < end:
        number += 1
        await api.call(
            "UpdateInferenceComponentRuntimeConfig",
            InferenceComponentName=f"e{number % options.endpoints}-c0",
            DesiredRuntimeConfig={"CopyCount": wanted - 1},
        )
        await asyncio.sleep(1.0)
    _, changed = process.rounds_ms(change_s)
    return Run(
        endpoints=options.endpoints,
        copies=options.copies,
        nodes=options.nodes,
        idle_round_ms=_median(idle),
        change_round_ms=_median(changed),
        loop_lag_p99_ms=_p99(process.lags_ms(since_s)),
        report_p99_ms=_p99([took * 1e3 for at, took in nodes.report_s if at >= since_s]),
        api_p99_ms=_p99([each * 1e3 for each in api.times_s]),
        cpu_share=cpu_share,
        rss_mb=process.rss_mb(),
        db_bytes=_database_bytes(settings),
        start_s=0.0,
        create_s=0.0,
        failed_reports=nodes.failed_reports,
    )


async def _create(api: Api, endpoints: int, nodes: int, copies: int, image: str) -> None:
    for number in range(endpoints):
        name = f"e{number}"
        variant = {
            "VariantName": "main",
            "InstanceType": TYPE,
            "InitialInstanceCount": nodes,
            "ManagedInstanceScaling": {
                "Status": "ENABLED",
                "MinInstanceCount": nodes,
                "MaxInstanceCount": nodes,
            },
        }
        await api.call(
            "CreateEndpointConfig",
            EndpointConfigName=name,
            ExecutionRoleArn=ROLE,
            ProductionVariants=[variant],
        )
        await api.call("CreateEndpoint", EndpointName=name, EndpointConfigName=name)
    for number in range(endpoints):
        await _until_in_service(api, f"e{number}")
        for component in range(COMPONENTS):
            await api.call(
                "CreateInferenceComponent",
                InferenceComponentName=f"e{number}-c{component}",
                EndpointName=f"e{number}",
                VariantName="main",
                Specification={
                    "Container": {"Image": image},
                    "ComputeResourceRequirements": {
                        "NumberOfCpuCoresRequired": 1,
                        "MinMemoryRequiredInMb": 1024,
                    },
                },
                RuntimeConfig={"CopyCount": copies},
            )


async def _until_in_service(api: Api, endpoint: str) -> None:
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        described = await api.call("DescribeEndpoint", EndpointName=endpoint)
        if described["EndpointStatus"] == "InService":
            return
        await asyncio.sleep(0.2)
    raise TimeoutError(f"{endpoint} is not InService: {described}")


async def _settle(settings: Settings, components: int) -> None:
    """Until every component is InService."""
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        ready = sum(
            each.status is ComponentStatus.IN_SERVICE
            for each in _read(settings, InferenceComponent)
        )
        if ready == components:
            return
        await asyncio.sleep(2.0)
    raise TimeoutError(f"{ready} of {components} components are InService")


async def _answers(settings: Settings) -> None:
    deadline = time.monotonic() + 120.0
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_unix_connection(str(settings.api_socket))
            writer.close()
            return
        await asyncio.sleep(0.02)
    raise TimeoutError("the control plane does not answer")


def _tokens(settings: Settings) -> dict[str, str]:
    states = (InstanceState.RUNNING, InstanceState.DRAINING)
    found = _read(settings, Instance)
    return {each.instance_id: each.node_token for each in found if each.state in states}


def _read(settings: Settings, kind: type[D]) -> list[D]:
    """Every document of a kind, beside the process that owns the state."""
    with _database(settings) as database:
        rows = database.execute(
            "SELECT body FROM documents WHERE kind = ?", (kind.kind,)
        ).fetchall()
    return [msgspec.json.decode(unpacked(row[0]), type=kind) for row in rows]


@contextlib.contextmanager
def _database(settings: Settings) -> Iterator[sqlite3.Connection]:
    database = sqlite3.connect(f"file:{settings.database}?mode=ro", uri=True, timeout=30.0)
    try:
        yield database
    finally:
        database.close()


def _database_bytes(settings: Settings) -> int:
    with _database(settings) as database:
        pages, free, size = (
            database.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
    return int((pages - free) * size)


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[max(0, math.ceil(len(values) * 0.99) - 1)] if values else math.nan


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="./run bench controlplane", description=__doc__)
    parser.add_argument("--endpoints", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--copies", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="zp-many-", dir="/var/tmp"))
    machine = f"zeropull {__version__}; {_machine()}"
    console.print(machine)
    try:
        with running_registry() as registry:
            image = make_image([[]])
            push_image(registry.direct, "bench", "1", image)
            run = asyncio.run(measure(options, folder, f"{registry.direct}/bench:1"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = Table("figure", "measured", "goal")
    figures = asdict(run) | {"db_bytes_per_copy": run.db_bytes_per_copy}
    for name, value in figures.items():
        goal = GOALS.get(name)
        table.add_row(name, f"{value:,.2f}".rstrip("0").rstrip("."), f"{goal:g}" if goal else "")
    console.print(table)
    if options.json is not None:
        document = {"machine": machine, "runs": [figures]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0
