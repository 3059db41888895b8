"""Whether this machine has room for one more instance, as pure functions with their arithmetic."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from zeropull.errors import NoCapacity
from zeropull.providers.local.cgroups import Limits
from zeropull.providers.protocol import MachineShape

_INSTANCE_PIDS = 65536  # daemons and all containers of an instance together, at most
# Of all tasks that the machine can have: one instance, and one copy of it. The fleet's own group
# has the rest of the machine to itself: see `cgroups.FLEET_PIDS_SHARE`.
_INSTANCE_PIDS_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class HostSize:
    """`pids`: tasks that the kernel has numbers for."""

    vcpus: int
    memory_bytes: int
    pids: int = 1 << 22


def plan_limits(shape: MachineShape, host: HostSize) -> Limits:
    """The smaller of the instance type's and the host's."""
    return Limits(
        vcpus=min(shape.vcpus, host.vcpus),
        memory_bytes=min(shape.memory_bytes, host.memory_bytes),
        pids=min(_INSTANCE_PIDS, int(host.pids * _INSTANCE_PIDS_SHARE)),
    )


def plan_rate(shape: MachineShape, *, limited: bool, rate_bits_per_s: int | None) -> int | None:
    """Bits per second of the instance's link, None = not limited."""
    return (rate_bits_per_s or shape.network_bits_per_s) if limited else None


def plan_accelerators(
    shape: MachineShape, devices: Sequence[str], taken: Collection[str], *, simulate: bool
) -> tuple[str, ...]:
    """Whole devices for one instance; `devices` are the fully qualified CDI names of the host.

    Raises:
        NoCapacity: fewer are free than the type has.
    """
    if shape.accelerators == 0:
        return ()
    if simulate:
        return tuple(str(index) for index in range(shape.accelerators))
    kind = shape.accelerator_kind or "nvidia.com/gpu"
    present = [device for device in devices if device.partition("=")[0] == kind]
    free = [device for device in present if device not in taken]
    if len(free) < shape.accelerators:
        raise NoCapacity(
            f"{shape.name} needs {shape.accelerators} {kind}; this machine has {len(present)}, of "
            f"which {len(present) - len(free)} are given out and {len(free)} are free"
            + ("" if present else " (no CDI specification names any; see `zeropull doctor`)")
        )
    return tuple(free[: shape.accelerators])


def check_count(running: int, most: int) -> None:
    """Raises:
    NoCapacity: the fleet has as many instances as it may have.
    """
    if running >= most:
        raise NoCapacity(
            f"this fleet has {running} of at most {most} instances (fleet.max_instances)"
        )
