"""Where instances come from.

Life of an instance: launch (idempotent by instance_id) -> running -> terminate (idempotent).
A provider keeps no truth of its own: `list_instances` reads what is really there, so that the
control plane can adopt it after a crash. Everything here may be called again after a crash at any
point, with the same arguments, and must then finish the work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class MachineShape:
    """What an instance type offers; None network = not limited."""

    name: str  # "ml.g5.xlarge"
    vcpus: int
    memory_bytes: int
    accelerators: int = 0
    accelerator_kind: str = ""  # "nvidia.com/gpu"
    network_bits_per_s: int | None = None


@dataclass(frozen=True, slots=True)
class Volume:
    """A published generation on the control plane's side: a directory that never changes."""

    generation: int
    path: Path
    index_digest: str


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    instance_id: str  # "i-" and 17 hex digits, globally unique
    shape: MachineShape
    node_token: str
    volumes: tuple[Volume, ...] = ()
    disk_bytes: int | None = None  # the node's own disk budget
    labels: dict[str, str] = field(default_factory=dict)  # endpoint, variant, account


@dataclass(frozen=True, slots=True)
class ProvidedInstance:
    """`running`: the node agent process is alive. `accelerators`: device names given out to it."""

    instance_id: str
    running: bool
    address: str | None = None
    accelerators: tuple[str, ...] = ()
    volumes: dict[int, str] = field(default_factory=dict)  # generation -> path as the node sees it
    labels: dict[str, str] = field(default_factory=dict)


class Provider(Protocol):
    """Starts, lists and ends instances, and attaches cache volumes to them."""

    async def launch(self, request: LaunchRequest) -> ProvidedInstance:
        """Start the instance; returns when its node agent process runs.

        Raises:
            NoCapacity: with the arithmetic; nothing is left behind.
        """

    async def terminate(self, instance_id: str) -> None:
        """End everything of the instance; returns when nothing of it is left."""

    async def list_instances(self) -> list[ProvidedInstance]:
        """What is really there, whoever started it."""

    async def attach(self, instance_id: str, volume: Volume) -> str:
        """Attach one more generation read-only; returns the path as the node sees it."""

    async def detach(self, instance_id: str, generation: int) -> None:
        """Take a generation away once nothing on the node uses it; idempotent."""

    async def collect_layer(self, instance_id: str, chain_id: str, into: Path) -> None:
        """Bring one published layer directory of the node to the new directory `into`.

        The local provider links files (same disk) or copies them; a remote one would transfer them.
        Cancelled, it ends soon and leaves nothing of it. Raises NotFound when the node has no such
        layer.
        """

    async def collect_profile(self, instance_id: str, manifest_digest: str) -> bytes | None:
        """The image's start profile if the node has recorded one; not checked in any way."""

    async def heal(self, instance_id: str) -> bool:
        """Start again whatever process of the instance has died; True when something was."""

    async def close(self) -> None:
        """Let go without ending anything (detach)."""
