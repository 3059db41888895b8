"""What the node's copies use of it, and what its plugin has counted; read every ten seconds.

Utilization is SageMaker's (`/aws/sagemaker/Endpoints`): CPUUtilization is 0 to 100 per core,
MemoryUtilization and DiskUtilization are percent of the instance, GPU figures 0 to 100 per GPU.
Counters are named as Prometheus has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from zeropull.controlapi.messages import LabelledCounter
from zeropull.nodeagent.disk import NodeDisk
from zeropull.resources.node import NodeConfig

INTERVAL_S = 10.0
CALL_TIMEOUT_S = 5.0
_CGROUPS = Path("/sys/fs/cgroup")
_NVIDIA_SMI = (
    "nvidia-smi",
    "--query-gpu=utilization.gpu,memory.used,memory.total",
    "--format=csv,noheader,nounits",
)


@dataclass(frozen=True, slots=True)
class CpuReading:
    """`used_s`: seconds of CPU time that the copies have had, `at_s`: monotonic clock."""

    at_s: float
    used_s: float


class Readings:
    """Newest figures; empty until the first reading."""

    def __init__(self, config: NodeConfig, disk: NodeDisk) -> None:
        self.utilization: dict[str, float] = {}
        self.plugin_counters: dict[str, float] = {}
        self._config = config
        self._disk = disk
        self._cpu: CpuReading | None = None
        self._gpus = gpu_indexes(config)

    async def run(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                await self.read_once()
            await asyncio.sleep(INTERVAL_S)

    async def read_once(self) -> None:
        """Read everything there is; what cannot be read is left out."""
        figures: dict[str, float] = {}
        cpu = read_cpu(self._config.cgroup_parent)
        if cpu is not None:
            if self._cpu is not None:
                figures["CPUUtilization"] = cpu_percent(self._cpu, cpu)
            self._cpu = cpu
        memory = read_memory_bytes(self._config.cgroup_parent)
        if memory is not None:
            figures["MemoryUtilization"] = 100.0 * memory / self._config.memory_bytes
        figures["DiskUtilization"] = await self._disk.utilization()
        if self._gpus:
            figures |= await _read_gpus(self._gpus)
        self.utilization = figures
        counters = await _read_plugin(self._config.snapshotter_status_socket)
        if counters is not None:
            self.plugin_counters = counters


def agent_counters(
    *,
    registry_bytes: int,
    model_store_bytes: int,
    verification_failures: int,
) -> dict[str, float]:
    """The agent's own counters since its start."""
    return {
        "zeropull_node_registry_bytes_total": float(registry_bytes),
        "zeropull_node_model_store_bytes_total": float(model_store_bytes),
        "zeropull_node_verification_failures_total": float(verification_failures),
    }


def image_counters(
    paths: Mapping[str, int], fallbacks: Mapping[str, int]
) -> tuple[LabelledCounter, ...]:
    """Images that this agent has made available, by their path and by why it was no better one."""
    return (
        *(LabelledCounter("zeropull_node_images_total", "path", p, n) for p, n in paths.items()),
        *(
            LabelledCounter("zeropull_node_image_fallbacks_total", "reason", reason, count)
            for reason, count in fallbacks.items()
        ),
    )


def cpu_percent(before: CpuReading, now: CpuReading) -> float:
    """100 = one core was busy all the time between the two."""
    passed_s = now.at_s - before.at_s
    return max(0.0, 100.0 * (now.used_s - before.used_s) / passed_s) if passed_s > 0 else 0.0


def read_cpu(group: str, root: Path = _CGROUPS) -> CpuReading | None:
    """Of a cgroup and all below it, version 1 or 2; None when it is not there."""
    relative = group.lstrip("/")
    with contextlib.suppress(OSError, ValueError):
        used_ns = int((root / "cpuacct" / relative / "cpuacct.usage").read_text())
        return CpuReading(time.monotonic(), used_ns / 1e9)
    with contextlib.suppress(OSError, ValueError, KeyError):
        used_us = int(_fields((root / relative / "cpu.stat").read_text())["usage_usec"])
        return CpuReading(time.monotonic(), used_us / 1e6)
    return None


def read_memory_bytes(group: str, root: Path = _CGROUPS) -> int | None:
    """What is used and cannot simply be dropped: page cache that nobody has touched for long is
    left out, as Kubernetes' working set does."""
    relative = group.lstrip("/")
    for folder, usage, inactive in (
        (root / "memory" / relative, "memory.usage_in_bytes", "total_inactive_file"),
        (root / relative, "memory.current", "inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):
            used = int((folder / usage).read_text())
            stat = _fields((folder / "memory.stat").read_text())
            return max(0, used - int(stat.get(inactive, "0")))
    return None


def gpu_indexes(config: NodeConfig) -> tuple[str, ...]:
    """The GPUs of this node as nvidia-smi counts them; () without the program or real GPUs."""
    if config.simulate_accelerators or shutil.which(_NVIDIA_SMI[0]) is None:
        return ()
    kinds = (name.partition("=") for name in config.accelerators)
    return tuple(index for kind, _, index in kinds if kind == "nvidia.com/gpu")


def parse_gpus(table: str) -> dict[str, float]:
    """nvidia-smi's CSV lines: percent busy, MiB used, MiB in all. Summed over the GPUs."""
    busy, memory, rows = 0.0, 0.0, 0
    for line in table.splitlines():
        with contextlib.suppress(ValueError, ZeroDivisionError):
            share, used, total = (float(cell) for cell in line.split(","))
            busy, memory, rows = busy + share, memory + 100.0 * used / total, rows + 1
    return {"GPUUtilization": busy, "GPUMemoryUtilization": memory} if rows else {}


async def _read_gpus(indexes: tuple[str, ...]) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        *_NVIDIA_SMI,
        f"--id={','.join(indexes)}",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return {}
    return parse_gpus(output.decode(errors="replace"))


async def _read_plugin(socket: Path) -> dict[str, float] | None:
    """The plugin's counters; None when it does not answer, so that the last ones stay."""
    timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
    connector = aiohttp.UnixConnector(str(socket))
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.get("http://plugin/status") as answer,
        ):
            counts = json.loads(await answer.read())
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None
    return {f"zeropull_snapshotter_{name}_total": float(count) for name, count in counts.items()}


def _fields(text: str) -> dict[str, str]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
