"""Copies land where the strategy, the cache and the arithmetic say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zeropull.placement.capacity import (
    Requirement,
    Shape,
    Slot,
    Strategy,
    empty_slot,
    schedulable_memory_bytes,
)
from zeropull.placement.instances import InstanceBounds, plan_consolidation, plan_instances
from zeropull.placement.placing import CopyRequest, choose_victims, place_copies

GIB = 1 << 30
SHAPE = Shape("ml.g5.12xlarge", 48_000, 100 * GIB, ("gpu0", "gpu1", "gpu2", "gpu3"))
NEED = Requirement(cpu_milli=1000, memory_bytes=8 * GIB, accelerators=1)


def slots(count: int, shape: Shape = SHAPE) -> dict[str, Slot]:
    return {f"i-{n}": empty_slot(f"i-{n}", shape) for n in range(count)}


def requests(count: int, **more: object) -> list[CopyRequest]:
    return [CopyRequest(f"c-{n}", "chat", NEED, **more) for n in range(count)]  # type: ignore[arg-type]


def test_spread_keeps_copies_even() -> None:
    fleet = slots(3)
    place_copies(requests(6), fleet)
    assert [slot.total_copies for slot in fleet.values()] == [2, 2, 2]


def test_binpack_fills_one_instance_before_the_next() -> None:
    fleet = slots(3)
    place_copies(requests(5, strategy=Strategy.BINPACK), fleet)
    assert sorted(slot.total_copies for slot in fleet.values()) == [0, 1, 4]


def test_accelerators_are_whole_and_never_shared() -> None:
    plan = place_copies(requests(9), slots(2))
    given = [(each.instance_id, device) for each in plan.placed for device in each.accelerators]
    assert len(given) == len(set(given)) == 8
    assert "at most 44 cores" in plan.waiting[0].reason
    assert not plan.waiting[0].never


def test_the_instance_that_has_image_and_model_is_preferred_when_balance_allows() -> None:
    fleet = slots(3)
    fleet["i-2"].cached = frozenset({"sha256:a", "model"})
    wants = frozenset({"sha256:a", "model"})
    plan = place_copies(requests(2, wants=wants), fleet)
    assert (plan.placed[0].instance_id, plan.placed[0].from_cache) == ("i-2", True)
    assert plan.placed[1].instance_id != "i-2"


def test_what_could_never_fit_says_so_with_the_arithmetic() -> None:
    need = Requirement(cpu_milli=1000, memory_bytes=200 * GIB, accelerators=5)
    plan = place_copies([CopyRequest("c", "big", need)], slots(2))
    assert plan.waiting[0].never
    assert "204800 MiB of 102400 MiB schedulable memory and 5 of 4 acc" in plan.waiting[0].reason


def test_memory_keeps_a_reserve() -> None:
    assert schedulable_memory_bytes(16 * GIB) == int(16 * GIB * 0.94) - (512 << 20)
    assert schedulable_memory_bytes(GIB // 4) == 0


def test_victims_come_from_instances_that_become_idle_first() -> None:
    fleet = slots(2)
    fleet["i-0"].place("chat", NEED)
    fleet["i-0"].place("other", NEED)
    fleet["i-1"].place("chat", NEED)
    running = [("c-0", "i-0", 0), ("c-1", "i-1", 9)]
    assert choose_victims("chat", 1, running, fleet) == ["c-1"]


def test_waiting_copies_make_as_many_instances_as_they_need_and_no_more() -> None:
    bounds = InstanceBounds(0, 10)
    plan = plan_instances(requests(6), slots(1), starting=1, shape=SHAPE, bounds=bounds)
    assert plan.add == 1
    tight = plan_instances(
        requests(40), slots(1), starting=0, shape=SHAPE, bounds=InstanceBounds(0, 3)
    )
    assert tight.add == 2
    assert "the maximum of 3" in tight.reason


def test_idle_instances_go_down_to_the_minimum() -> None:
    fleet = slots(3)
    fleet["i-0"].place("chat", NEED)
    idle = frozenset({"i-0", "i-1", "i-2"})
    plan = plan_instances(
        [], fleet, starting=0, shape=SHAPE, bounds=InstanceBounds(2, 5), idle_long_enough=idle
    )
    assert plan.release == ("i-1",)


def test_consolidation_empties_what_fits_elsewhere() -> None:
    fleet = slots(3)
    for name in fleet:
        fleet[name].place("chat", NEED)
    assert len(plan_consolidation(fleet, {"chat": NEED}, max_step=1, minimum=0)) == 1
    assert len(plan_consolidation(fleet, {"chat": NEED}, max_step=5, minimum=1)) == 2


def test_consolidation_counts_what_has_moved_to_an_instance_that_is_emptied_next() -> None:
    fleet = slots(3)
    third = Requirement(SHAPE.cpu_milli // 3)
    for name, count in (("i-0", 1), ("i-1", 1), ("i-2", 2)):
        for _ in range(count):
            fleet[name].place("chat", third)
    before = {name: (slot.cpu_milli, dict(slot.copies)) for name, slot in fleet.items()}
    # Four copies of a third each: two instances at least, whatever the step.
    assert plan_consolidation(fleet, {"chat": third}, max_step=5, minimum=0) == ("i-0",)
    assert {name: (slot.cpu_milli, dict(slot.copies)) for name, slot in fleet.items()} == before


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.integers(0, 4000), st.integers(0, 30), st.integers(0, 4)
        ),
        max_size=60,
    ),
    st.integers(0, 5),
    st.sampled_from(list(Strategy)),
)
def test_nothing_is_ever_given_out_twice(
    wanted: list[tuple[str, int, int, int]], count: int, strategy: Strategy
) -> None:
    fleet = slots(count)
    asked = [
        CopyRequest(f"c-{n}", name, Requirement(cpu, memory * GIB, devices), strategy)
        for n, (name, cpu, memory, devices) in enumerate(wanted)
    ]
    plan = place_copies(asked, fleet)
    assert len(plan.placed) + len(plan.waiting) == len(asked)
    for name, slot in fleet.items():
        mine = [p for p in plan.placed if p.instance_id == name]
        needs = [next(r.need for r in asked if r.copy_id == p.copy_id) for p in mine]
        assert slot.cpu_milli == SHAPE.cpu_milli - sum(n.cpu_milli for n in needs) >= 0
        assert slot.memory_bytes == SHAPE.memory_bytes - sum(n.memory_bytes for n in needs) >= 0
        devices = [device for p in mine for device in p.accelerators]
        assert len(devices) == len(set(devices)) == 4 - len(slot.accelerators)
