"""What an instance offers to copies and what a copy reserves. No I/O.

Of an instance's memory a reserve is kept back for the node itself (kernel, containerd, agent): 6 %
of the memory and 512 MiB. CPU cores are counted in thousandths, so that sums are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

MEMORY_RESERVE_FRACTION = 0.06
MEMORY_RESERVE_BYTES = 512 << 20


class Strategy(StrEnum):
    """SageMaker's PlacementStrategy."""

    SPREAD = "SPREAD"
    BINPACK = "BINPACK"


@dataclass(frozen=True, slots=True)
class Requirement:
    """What one copy reserves: thousandths of a core, bytes, whole accelerators."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    accelerators: int = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """What an empty instance of one type offers to copies."""

    instance_type: str
    cpu_milli: int
    memory_bytes: int
    accelerators: tuple[str, ...] = ()


@dataclass(slots=True)
class Slot:
    """One instance while a plan is made: `place` takes away from what is free.

    `copies` counts copies by component; `cached` holds the digests of images and the identities of
    models that are on the node already. A `closed` instance (draining, failing) takes no copies.
    """

    instance_id: str
    shape: Shape
    cpu_milli: int
    memory_bytes: int
    accelerators: list[str]
    copies: dict[str, int] = field(default_factory=dict)
    cached: frozenset[str] = frozenset()
    closed: bool = False

    @property
    def total_copies(self) -> int:
        return sum(self.copies.values())

    def fits(self, need: Requirement) -> bool:
        return (
            not self.closed
            and self.cpu_milli >= need.cpu_milli
            and self.memory_bytes >= need.memory_bytes
            and len(self.accelerators) >= need.accelerators
        )

    def place(self, component: str, need: Requirement) -> tuple[str, ...]:
        """Reserve; returns the accelerators that the copy gets for itself."""
        self.cpu_milli -= need.cpu_milli
        self.memory_bytes -= need.memory_bytes
        given = tuple(self.accelerators[: need.accelerators])
        del self.accelerators[: need.accelerators]
        self.copies[component] = self.copies.get(component, 0) + 1
        return given

    def release(self, component: str, need: Requirement, accelerators: tuple[str, ...]) -> None:
        """Give back what a copy had."""
        self.cpu_milli += need.cpu_milli
        self.memory_bytes += need.memory_bytes
        self.accelerators = sorted([*self.accelerators, *accelerators])
        self.copies[component] -= 1
        if not self.copies[component]:
            del self.copies[component]


def schedulable_memory_bytes(memory_bytes: int) -> int:
    """An instance's memory less the node's reserve; never below zero."""
    kept = int(memory_bytes * (1 - MEMORY_RESERVE_FRACTION)) - MEMORY_RESERVE_BYTES
    return max(0, kept)


def empty_slot(instance_id: str, shape: Shape, cached: frozenset[str] = frozenset()) -> Slot:
    return Slot(
        instance_id,
        shape,
        shape.cpu_milli,
        shape.memory_bytes,
        list(shape.accelerators),
        {},
        cached,
    )


def never_fits(need: Requirement, shape: Shape) -> str | None:
    """The arithmetic why a copy can never run on an empty instance; None when it can."""
    lacks = []
    if need.cpu_milli > shape.cpu_milli:
        lacks.append(f"{need.cpu_milli / 1000:g} of {shape.cpu_milli / 1000:g} CPU cores")
    if need.memory_bytes > shape.memory_bytes:
        lacks.append(
            f"{need.memory_bytes >> 20} MiB of {shape.memory_bytes >> 20} MiB schedulable memory"
        )
    if need.accelerators > len(shape.accelerators):
        lacks.append(f"{need.accelerators} of {len(shape.accelerators)} accelerators")
    if not lacks:
        return None
    return f"a copy needs {' and '.join(lacks)} of an empty {shape.instance_type}"


def shortage(need: Requirement, slots: Mapping[str, Slot]) -> str:
    """Why a copy fits on none of the instances now, for people to read."""
    open_slots = [slot for slot in slots.values() if not slot.closed]
    if not open_slots:
        return "there is no instance yet"
    cpu = max(slot.cpu_milli for slot in open_slots) / 1000
    memory = max(slot.memory_bytes for slot in open_slots) >> 20
    devices = max(len(slot.accelerators) for slot in open_slots)
    return (
        f"a copy needs {need.cpu_milli / 1000:g} cores, {need.memory_bytes >> 20} MiB and "
        f"{need.accelerators} accelerators; at most {cpu:g} cores, {memory} MiB and {devices} "
        f"accelerators are free on one of {len(open_slots)} instances"
    )
