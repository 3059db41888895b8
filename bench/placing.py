"""How long the pure parts of placing take: all copies, one more, and a round of planning."""

from __future__ import annotations

import statistics
import time
from typing import Any

from tests.unit.reconcilers.component_world import deployment, world
from tests.unit.reconcilers.memory_world import SHAPE
from zeropull.placement.capacity import Requirement, Shape, Strategy, empty_slot
from zeropull.placement.placing import CopyRequest, place_copies
from zeropull.reconcilers.planning import plan_endpoint

COPIES, INSTANCES, COMPONENTS = 10_000, 1_000, 100
PLANNED = (1_000, 10_000)
PER_INSTANCE, PER_COMPONENT = 10, 100  # of those
ROUNDS = 5


def placement() -> dict[str, Any]:
    """10,000 copies on 1,000 instances at once, then one more: the median of 100 such decisions."""
    shape = Shape("ml.large", 96_000, 768 << 30, tuple(str(index) for index in range(8)))
    slots = {f"i-{n}": empty_slot(f"i-{n}", shape) for n in range(INSTANCES)}
    need = Requirement(500, 2 << 30)
    requests = [
        CopyRequest(
            f"c-{n}",
            f"component-{n * COMPONENTS // COPIES}",
            need,
            Strategy.SPREAD if n * COMPONENTS // COPIES % 2 else Strategy.BINPACK,
        )
        for n in range(COPIES)
    ]
    began_s = time.perf_counter()
    plan = place_copies(requests, slots)
    full_s = time.perf_counter() - began_s
    assert len(plan.placed) == COPIES
    took_s = []
    for number in range(100):
        one = CopyRequest(f"more-{number}", f"component-{number}", need)
        began_s = time.perf_counter()
        place_copies([one], slots)
        took_s.append(time.perf_counter() - began_s)
    return {
        "copies": COPIES,
        "instances": INSTANCES,
        "full_s": round(full_s, 3),
        "incremental_ms": round(statistics.median(took_s) * 1000, 2),
        "planning_round_ms": {str(copies): _planning_round_ms(copies) for copies in PLANNED},
    }


def _planning_round_ms(copies: int) -> float:
    """One whole plan of an endpoint whose copies all serve, so that nothing is to be done: what
    every round costs. The median of a few."""
    instances = copies // PER_INSTANCE
    made = world(deployment(1, instances, initial=instances), capacity=instances)
    for number in range(copies // PER_COMPONENT):
        made.add(f"component-{number:03}", PER_COMPONENT)
    made.settle(4)
    view = made.view()
    took_s = []
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        draft = plan_endpoint(view, made.now_s, made.settings, lambda _: SHAPE)
        took_s.append(time.perf_counter() - began_s)
        assert len(draft.copies) == copies
        assert not draft.decisions
    return round(statistics.median(took_s) * 1000, 1)
