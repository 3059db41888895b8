"""From several policies' proposals to one decision: limits, suspension and cooldowns.

Source: Application Auto Scaling user guide, "Multiple policies" and "Cooldown periods": out if any
policy says out, in only if all say in; the largest capacity wins; during a scale-out cooldown only
a larger scale-out goes ahead, during a scale-in cooldown no further scale-in does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from zeropull.autoscaler.readings import Decision, Limits, NotScaled

UNDO_S = 600
"""A scale-out this soon after a scale-in shows that it was a mistake."""


@dataclass(frozen=True, slots=True)
class LastScaling:
    """The newest scale-out and scale-in that took effect; seconds are Unix time, 0 = never.
    `in_from` is the capacity before that scale-in."""

    out_at_s: float = 0.0
    out_from: int = 0
    out_to: int = 0
    out_cooldown_s: int = 0
    in_at_s: float = 0.0
    in_cooldown_s: int = 0
    in_from: int = 0

    def after_out(self, now_s: float, capacity: int, wanted: int, cooldown_s: int) -> LastScaling:
        """A scale-out ends the cooldown of a scale-in."""
        return LastScaling(now_s, capacity, wanted, cooldown_s, self.in_at_s, 0, self.in_from)

    def after_in(self, now_s: float, capacity: int, cooldown_s: int) -> LastScaling:
        return replace(self, in_at_s=now_s, in_cooldown_s=cooldown_s, in_from=capacity)

    def undone(self, now_s: float) -> int:
        """The capacity that a scale-out so soon after a scale-in goes back to; 0 = none."""
        return self.in_from if now_s - self.in_at_s < UNDO_S else 0

    def cooling_out(self, now_s: float) -> bool:
        return now_s < self.out_at_s + self.out_cooldown_s

    def cooling_in(self, now_s: float) -> bool:
        return now_s < self.in_at_s + self.in_cooldown_s


def combine(
    proposals: Sequence[Decision],
    *,
    capacity: int,
    limits: Limits,
    last: LastScaling,
    now_s: float,
) -> Decision:
    """One decision for a scalable target; `capacity` is the desired capacity now."""
    if not proposals:
        return Decision(capacity, "no policy", None, NotScaled.AT_DESIRED)
    outs = [proposal for proposal in proposals if proposal.desired > capacity]
    if outs:
        return _scale_out(max(outs, key=lambda each: each.desired), capacity, limits, last, now_s)
    # A policy that has no data, is within its target or guards against flapping vetoes scale-in;
    # one whose scale-in is disabled has no say.
    voters = [each for each in proposals if each.not_scaled is not NotScaled.SUSPENDED]
    vetoes = [each for each in voters if each.desired >= capacity]
    if vetoes or not voters:
        return (vetoes or list(proposals))[0]
    return _scale_in(max(voters, key=lambda each: each.desired), capacity, limits, last, now_s)


def _scale_out(
    proposal: Decision, capacity: int, limits: Limits, last: LastScaling, now_s: float
) -> Decision:
    if limits.scale_out_suspended:
        return _held(proposal, capacity, NotScaled.SUSPENDED, "scale-out is suspended")
    wanted = limits.clamp(proposal.desired)
    if wanted <= capacity:
        return _held(
            proposal, capacity, NotScaled.AT_MAXIMUM, f"the maximum of {limits.maximum} is reached"
        )
    if last.cooling_out(now_s) and wanted <= last.out_to:
        left = last.out_at_s + last.out_cooldown_s - now_s
        why = f"scaled out to {last.out_to} already, cooling down for {left:.0f} s more"
        return _held(proposal, capacity, NotScaled.COOLING_DOWN, why)
    return _limited(proposal, wanted)


def _scale_in(
    proposal: Decision, capacity: int, limits: Limits, last: LastScaling, now_s: float
) -> Decision:
    if limits.scale_in_suspended:
        return _held(proposal, capacity, NotScaled.SUSPENDED, "scale-in is suspended")
    wanted = limits.clamp(proposal.desired)
    if wanted >= capacity:
        return _held(
            proposal, capacity, NotScaled.AT_MINIMUM, f"the minimum of {limits.minimum} is reached"
        )
    if last.cooling_in(now_s) or last.cooling_out(now_s):
        ends = max(last.in_at_s + last.in_cooldown_s, last.out_at_s + last.out_cooldown_s)
        why = f"cooling down for {ends - now_s:.0f} s more"
        return _held(proposal, capacity, NotScaled.COOLING_DOWN, why)
    return _limited(proposal, wanted)


def _limited(proposal: Decision, wanted: int) -> Decision:
    if wanted == proposal.desired:
        return proposal
    return replace(
        proposal, desired=wanted, reason=f"{proposal.reason}, limited to {wanted} by the bounds"
    )


def _held(proposal: Decision, capacity: int, code: NotScaled, why: str) -> Decision:
    return Decision(capacity, f"{proposal.reason}; {why}", proposal.policy, code)
