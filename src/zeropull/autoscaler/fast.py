"""Our own way of deciding: from exact in-flight counts, every second, knowing what is starting.

Out, at once: the load was above the capacity that serves during each of the last two seconds (of
the newest its first half is enough), or a request has waited for two. The size is the load at the
time when a new instance could answer, if it keeps growing as it does now. Instances that are still
starting count as if they served, so one burst is answered once. Out, ahead of need: the mean of a
minute leaves less than an eighth free.

In: as cautious as AWS's 15 minutes, with one step to what the highest minute and the highest five
seconds of that time need, with the same eighth in hand, so that the next reading does not undo it.
A load that goes down slowly and steadily, and would let AWS scale in, needs no more than its last
five minutes did: what that saves in an evening pays for the eighth.

The figures are those that did best in `bench/replay.py`, whose docstring says what is reached. A
load that never calms down at the scale of seconds still goes out and in again now and then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zeropull.autoscaler.loadwindow import PEAK_S, STEADY_S, THIRD_S, LoadWindow
from zeropull.autoscaler.readings import Decision, Limits, NotScaled
from zeropull.autoscaler.targettracking import SCALE_IN_FRACTION

REACT_S = 2
RESERVE_FRACTION = 0.88
"""How much of its target a fleet may be filled by the mean of a minute."""
SPIKE_FRACTION = 0.95
"""How much of its target a fleet may be filled by the highest five seconds of 15 minutes."""
MAX_FORECAST_RATIO = 1.25
"""A forecast may not ask for more than this many times the load that is really there."""


@dataclass(frozen=True, slots=True)
class FastPolicy:
    """`target`: concurrent requests per instance (or copy) that is right in the long run."""

    name: str
    target: float
    scale_in_disabled: bool = False


@dataclass(frozen=True, slots=True)
class Fleet:
    """What there is: units that serve, the Unix seconds at which starting ones should, and how
    long a start takes (measured; a guess before the first)."""

    ready: int
    starting_at_s: Sequence[float] = ()
    startup_s: float = 60.0

    @property
    def capacity(self) -> int:
        return self.ready + len(self.starting_at_s)


def decide_fast(
    policy: FastPolicy,
    window: LoadWindow,
    *,
    queue_age_s: float,
    fleet: Fleet,
    limits: Limits,
    now_s: float,
) -> Decision:
    """The capacity that should be desired at `now_s`."""
    capacity = fleet.capacity
    if capacity < limits.minimum:
        return Decision(limits.minimum, f"below the minimum of {limits.minimum}", policy.name)
    sustained = window.sustained(REACT_S)
    if sustained is None:
        return _stay(policy, capacity, NotScaled.NO_DATA, "no readings yet")
    waiting = queue_age_s >= REACT_S
    if sustained > fleet.ready * policy.target or waiting:
        return _scale_out(policy, window, queue_age_s, fleet, limits, now_s)
    if window.covers(STEADY_S) and _with_reserve(policy, window.steady()) > capacity:
        return _keep_reserve(policy, window, fleet, limits)
    return _scale_in(policy, window, fleet, limits)


def _scale_out(
    policy: FastPolicy,
    window: LoadWindow,
    queue_age_s: float,
    fleet: Fleet,
    limits: Limits,
    now_s: float,
) -> Decision:
    load = window.mean(REACT_S)
    seen_s = REACT_S - 0.5 if window.ends_in_half else REACT_S
    ahead = load + max(0.0, window.slope_per_s()) * fleet.startup_s
    forecast = min(ahead, load * MAX_FORECAST_RATIO)
    wanted = max(math.ceil(forecast / policy.target), _with_reserve(policy, window.steady()))
    if queue_age_s >= REACT_S:
        wanted = max(wanted, fleet.ready + 1)
    seen = (
        f"{load:.1f} requests in flight for {seen_s:g} s, {forecast:.1f} expected in "
        f"{fleet.startup_s:.0f} s, {fleet.ready} × {policy.target:g} served"
    )
    if queue_age_s >= REACT_S:
        seen += f", the oldest waits for {queue_age_s:.1f} s"
    if wanted <= fleet.capacity:
        soonest = min(fleet.starting_at_s, default=now_s) - now_s
        why = f"{seen}: {len(fleet.starting_at_s)} starting, the next in {max(0.0, soonest):.0f} s"
        return _stay(policy, fleet.capacity, NotScaled.STARTING, why)
    return _limited(policy, wanted, seen, fleet, limits)


def _keep_reserve(policy: FastPolicy, window: LoadWindow, fleet: Fleet, limits: Limits) -> Decision:
    wanted = _with_reserve(policy, window.steady())
    seen = (
        f"{window.steady():.1f} requests in flight over a minute leave less than "
        f"{1 - RESERVE_FRACTION:.0%} of {fleet.capacity} × {policy.target:g} free"
    )
    return _limited(policy, wanted, seen, fleet, limits)


def _limited(policy: FastPolicy, wanted: int, seen: str, fleet: Fleet, limits: Limits) -> Decision:
    """Scale out as far as the target allows, or say what is in the way."""
    if limits.scale_out_suspended:
        return _stay(policy, fleet.capacity, NotScaled.SUSPENDED, f"{seen}: scale-out is suspended")
    allowed = limits.clamp(wanted)
    if allowed <= fleet.capacity:
        why = f"{seen}: {wanted} wanted, the maximum of {limits.maximum} is reached"
        return _stay(policy, fleet.capacity, NotScaled.AT_MAXIMUM, why)
    return Decision(allowed, f"{seen}: {wanted} wanted", policy.name)


def _with_reserve(policy: FastPolicy, load: float) -> int:
    """How many serve a steady load and keep an eighth in hand for its noise."""
    return math.ceil(round(load / (RESERVE_FRACTION * policy.target), 6))


def _scale_in(policy: FastPolicy, window: LoadWindow, fleet: Fleet, limits: Limits) -> Decision:
    capacity = fleet.capacity
    peak, steady, minutes = window.peak(), window.steady_peak(), PEAK_S // 60
    served = capacity * policy.target
    if window.is_falling_slowly() and steady < SCALE_IN_FRACTION * served and peak < served:
        peak, steady = window.recent_peak(), window.recent_steady_peak()
        minutes = THIRD_S // 60
    needed = max(
        math.ceil(round(peak / (SPIKE_FRACTION * policy.target), 6)),
        _with_reserve(policy, steady),
    )
    wanted = max(needed, limits.minimum)
    seen = f"at most {peak:.1f} requests in flight in {minutes} minutes need {needed}"
    if wanted >= capacity:
        code = NotScaled.AT_MINIMUM if capacity <= limits.minimum else NotScaled.WITHIN_TARGET
        return _stay(policy, capacity, code, seen)
    if not window.covers(PEAK_S):
        why = f"{seen}, but there are readings of less than {PEAK_S // 60} minutes"
        return _stay(policy, capacity, NotScaled.NO_DATA, why)
    if fleet.starting_at_s:
        return _stay(policy, capacity, NotScaled.STARTING, f"{seen}, but some are still starting")
    if policy.scale_in_disabled or limits.scale_in_suspended:
        return _stay(policy, capacity, NotScaled.SUSPENDED, f"{seen}, but scale-in is switched off")
    return Decision(wanted, seen, policy.name)


def _stay(policy: FastPolicy, capacity: int, code: NotScaled, why: str) -> Decision:
    return Decision(capacity, why, policy.name, code)
