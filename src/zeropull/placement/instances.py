"""When an instance is needed, idle, or worth emptying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zeropull.placement.capacity import Requirement, Shape, Slot, empty_slot
from zeropull.placement.placing import CopyRequest, place_copies

MAX_TRIES = 20
"""Instances that are looked at in vain before consolidation gives up: the emptiest come first, and
each is a placement on all others."""


@dataclass(frozen=True, slots=True)
class InstanceBounds:
    """ManagedInstanceScaling of a variant."""

    minimum: int
    maximum: int


@dataclass(frozen=True, slots=True)
class InstancePlan:
    """How many to add, which to release, and why."""

    add: int
    release: tuple[str, ...]
    reason: str


def plan_instances(
    waiting: Sequence[CopyRequest],
    slots: dict[str, Slot],
    *,
    starting: int,
    shape: Shape,
    bounds: InstanceBounds,
    idle_long_enough: frozenset[str] = frozenset(),
) -> InstancePlan:
    """`waiting` fits on none of `slots`; `starting` instances are on their way already.

    An instance is released when it holds no copy, has been idle long enough and is not needed for
    the minimum.
    """
    count = len(slots) + starting
    if waiting:
        needed = _instances_for(waiting, shape)
        add = max(0, min(needed - starting, bounds.maximum - count))
        if needed - starting > add:
            why = f"{needed} more instances wanted, the maximum of {bounds.maximum} leaves {add}"
        else:
            why = f"{len(waiting)} copies wait for {needed} instances, {starting} are starting"
        return InstancePlan(add, (), why)
    if count < bounds.minimum:
        return InstancePlan(bounds.minimum - count, (), f"below the minimum of {bounds.minimum}")
    idle = sorted(name for name in idle_long_enough if name in slots and not slots[name].copies)
    release = tuple(idle[: max(0, count - bounds.minimum)])
    return InstancePlan(0, release, f"{len(release)} idle" if release else "nothing to do")


def plan_consolidation(
    slots: dict[str, Slot],
    needs: dict[str, Requirement],
    *,
    max_step: int,
    minimum: int,
) -> tuple[str, ...]:
    """Instances whose copies all fit on the others, emptiest first, at most `max_step` of them.

    `needs` by component. The caller starts the copies elsewhere, then drains these.
    """
    chosen: list[str] = []
    trial = {name: _twin(slot) for name, slot in slots.items() if not slot.closed}
    order = sorted(trial, key=lambda each: (trial[each].total_copies, each))
    for name in order[: max_step + MAX_TRIES]:
        if len(chosen) >= max_step or len(trial) - 1 < minimum or len(trial) == 1:
            break
        leaving = trial.pop(name)
        if _moves(name, leaving.copies, needs, trial):
            chosen.append(name)
        else:
            trial[name] = leaving
    return tuple(chosen)


def _moves(
    name: str, copies: dict[str, int], needs: dict[str, Requirement], others: dict[str, Slot]
) -> bool:
    """Place them on `others` if all of them fit there; nothing has changed if not."""
    movers = [
        CopyRequest(f"{name}/{component}/{index}", component, needs[component])
        for component, count in copies.items()
        for index in range(count)
    ]
    plan = place_copies(movers, others)
    if not plan.waiting:
        return True
    component_of = {mover.copy_id: mover.component for mover in movers}
    for placed in plan.placed:
        component = component_of[placed.copy_id]
        others[placed.instance_id].release(component, needs[component], placed.accelerators)
    return False


def _instances_for(waiting: Sequence[CopyRequest], shape: Shape) -> int:
    """How many empty instances take all of `waiting` (first fit, largest first)."""
    slots: list[Slot] = []
    ordered = sorted(
        waiting, key=lambda r: (-r.need.accelerators, -r.need.memory_bytes, -r.need.cpu_milli)
    )
    for request in ordered:
        slot = next((each for each in slots if each.fits(request.need)), None)
        if slot is None:
            slot = empty_slot(f"new-{len(slots)}", shape)
            if not slot.fits(request.need):
                continue  # it never fits: another instance would not help
            slots.append(slot)
        slot.place(request.component, request.need)
    return len(slots)


def _twin(slot: Slot) -> Slot:
    return Slot(
        slot.instance_id, slot.shape, slot.cpu_milli, slot.memory_bytes,
        list(slot.accelerators), dict(slot.copies), slot.cached, slot.closed,
    )  # fmt: skip
