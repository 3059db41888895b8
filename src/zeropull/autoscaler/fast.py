"""Our own way of deciding: from exact in-flight counts, every second, knowing what is starting.

Out, at once: the load was above the capacity that serves during each of the last two seconds (of
the newest its first half is enough), or a request has waited for two. The size is the load, or what
it will be when a new instance could answer, if it goes on rising for as long as it has been rising;
a load that rises and falls all the time is not continued. Instances that are still starting count
as if they served, so one burst is answered once. What was let go of less than ten minutes ago comes
back whole. Out, ahead of need: the mean of a minute leaves less than an eighth free.

In: as cautious as AWS's 15 minutes, to what the highest minute and the highest five seconds of that
time need, with the same eighth in hand, so that the next reading does not undo it. The policy's
cooldowns hold it back as they do with AWS's rules: what was started too many is not let go of the
moment it serves. When the next minute would let more go, that is waited for: one step, not several.
A calm load that goes down slowly and steadily, and would let AWS scale in, needs no more than its
last five minutes did: what that saves in an evening pays for the eighth.

The figures were chosen with `bench/replay.py`, whose docstring says what is reached.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zeropull.autoscaler.combining import LastScaling
from zeropull.autoscaler.load_window import (
    PEAK_S,
    SETTLE_S,
    STEADY_S,
    THIRD_S,
    LoadWindow,
    Peaks,
)
from zeropull.autoscaler.readings import Decision, Limits, NotScaled
from zeropull.autoscaler.target_tracking import SCALE_IN_FRACTION

REACT_S = 2
RESERVE_FRACTION = 0.88
"""How much of its target a fleet may be filled by the mean of a minute."""
SPIKE_FRACTION = 0.95
"""How much of its target a fleet may be filled by the highest five seconds of 15 minutes."""
MAX_FORECAST_RATIO = 1.5
"""A forecast may not ask for more than this many times the load that is really there."""
ROUGH = 1.12
"""A load whose five-second peaks stand this far above its minutes rises and falls all the time:
its rises are not continued."""


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


@dataclass(frozen=True, slots=True)
class _Moment:
    """What a decision is made from."""

    policy: FastPolicy
    window: LoadWindow
    queue_age_s: float
    fleet: Fleet
    limits: Limits
    last: LastScaling
    now_s: float

    @property
    def is_waiting_too_long(self) -> bool:
        return self.queue_age_s >= REACT_S


def decide_fast(
    policy: FastPolicy,
    window: LoadWindow,
    *,
    queue_age_s: float,
    fleet: Fleet,
    limits: Limits,
    last: LastScaling,
    now_s: float,
) -> Decision:
    """The capacity that should be desired at `now_s`."""
    capacity = fleet.capacity
    if capacity < limits.minimum:
        return Decision(limits.minimum, f"below the minimum of {limits.minimum}", policy.name)
    sustained = window.sustained(REACT_S)
    if sustained is None:
        return _stay(policy, capacity, NotScaled.NO_DATA, "no readings yet")
    moment = _Moment(policy, window, queue_age_s, fleet, limits, last, now_s)
    if sustained > fleet.ready * policy.target or moment.is_waiting_too_long:
        return _scale_out(moment)
    if window.covers(STEADY_S) and _with_reserve(policy, window.steady()) > capacity:
        return _keep_reserve(moment)
    return _scale_in(moment)


def _scale_out(moment: _Moment) -> Decision:
    policy, window, fleet, now_s = moment.policy, moment.window, moment.fleet, moment.now_s
    load = window.mean(REACT_S)
    seen_s = REACT_S - 0.5 if window.ends_in_half else REACT_S
    forecast = _forecast(window, load, fleet)
    wanted = max(math.ceil(forecast / policy.target), _with_reserve(policy, window.steady()))
    if moment.is_waiting_too_long:
        wanted = max(wanted, fleet.ready + 1)
    seen = (
        f"{load:.1f} requests in flight for {seen_s:g} s, {forecast:.1f} expected in "
        f"{fleet.startup_s:.0f} s, {fleet.ready} × {policy.target:g} served"
    )
    if moment.is_waiting_too_long:
        seen += f", the oldest waits for {moment.queue_age_s:.1f} s"
    if wanted <= fleet.capacity:
        soonest = min(fleet.starting_at_s, default=now_s) - now_s
        why = f"{seen}: {len(fleet.starting_at_s)} starting, the next in {max(0.0, soonest):.0f} s"
        return _stay(policy, fleet.capacity, NotScaled.STARTING, why)
    return _limited(moment, wanted, seen)


def _forecast(window: LoadWindow, load: float, fleet: Fleet) -> float:
    """The load when an instance that is asked for now serves. A rise is expected to last as long
    again as it has lasted: that tells a ramp from a jump, without knowing how long ramps are."""
    if window.roughness() > ROUGH:
        return load
    growth_per_s, risen_s = window.rise()
    return min(load + growth_per_s * min(risen_s, fleet.startup_s), load * MAX_FORECAST_RATIO)


def _keep_reserve(moment: _Moment) -> Decision:
    policy, window, fleet = moment.policy, moment.window, moment.fleet
    wanted = _with_reserve(policy, window.steady())
    seen = (
        f"{window.steady():.1f} requests in flight over a minute leave less than "
        f"{1 - RESERVE_FRACTION:.0%} of {fleet.capacity} × {policy.target:g} free"
    )
    return _limited(moment, wanted, seen)


def _limited(moment: _Moment, wanted: int, seen: str) -> Decision:
    """Scale out as far as the target allows, or say what is in the way. What was let go of a short
    while ago comes back whole."""
    policy, fleet, limits = moment.policy, moment.fleet, moment.limits
    last, now_s = moment.last, moment.now_s
    if wanted < last.undone(now_s):
        seen += f": {wanted} wanted, and there were {last.in_from} {now_s - last.in_at_s:.0f} s ago"
        wanted = last.in_from
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


def _needed(policy: FastPolicy, peaks: Peaks) -> int:
    return max(
        math.ceil(round(peaks.spike / (SPIKE_FRACTION * policy.target), 6)),
        _with_reserve(policy, peaks.steady),
    )


def _scale_in(moment: _Moment) -> Decision:
    policy, window, fleet, limits = moment.policy, moment.window, moment.fleet, moment.limits
    last, now_s = moment.last, moment.now_s
    capacity, peaks, minutes = fleet.capacity, window.peaks(), PEAK_S // 60
    served = capacity * policy.target
    if (
        window.is_falling_slowly()
        and window.roughness() <= ROUGH
        and peaks.steady < SCALE_IN_FRACTION * served
        and peaks.spike < served
    ):
        peaks, minutes = window.peaks(THIRD_S), THIRD_S // 60
    needed = _needed(policy, peaks)
    wanted = max(needed, limits.minimum)
    seen = f"at most {peaks.spike:.1f} requests in flight in {minutes} minutes need {needed}"
    if needed >= capacity:
        return _stay(policy, capacity, NotScaled.WITHIN_TARGET, seen)
    if not window.covers(PEAK_S):
        why = f"{seen}, but there are readings of less than {PEAK_S // 60} minutes"
        return _stay(policy, capacity, NotScaled.NO_DATA, why)
    if policy.scale_in_disabled or limits.scale_in_suspended:
        return _stay(policy, capacity, NotScaled.SUSPENDED, f"{seen}, but scale-in is switched off")
    if wanted >= capacity:
        why = f"{seen}, the minimum of {limits.minimum} is reached"
        return _stay(policy, capacity, NotScaled.AT_MINIMUM, why)
    if fleet.starting_at_s:
        return _stay(policy, capacity, NotScaled.STARTING, f"{seen}, but some are still starting")
    if last.cooling_in(now_s) or last.cooling_out(now_s):
        ends_s = max(last.in_at_s + last.in_cooldown_s, last.out_at_s + last.out_cooldown_s)
        why = f"{seen}; cooling down for {ends_s - now_s:.0f} s more"
        return _stay(policy, capacity, NotScaled.COOLING_DOWN, why)
    soon = max(limits.minimum, _needed(policy, window.peaks(PEAK_S - SETTLE_S)))
    a_minute_ago = _needed(policy, window.peaks(PEAK_S + SETTLE_S))
    if soon < wanted and a_minute_ago >= capacity:
        why = f"{seen}, within a minute only {soon}: one step for both"
        return _stay(policy, capacity, NotScaled.COOLING_DOWN, why)
    return Decision(wanted, seen, policy.name)


def _stay(policy: FastPolicy, capacity: int, code: NotScaled, why: str) -> Decision:
    return Decision(capacity, why, policy.name, code)
