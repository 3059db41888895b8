"""Tells a dead instance from a silent one. All times are of the monotonic clock.

An instance is not dead because nobody has listened, because the wall clock was set, or because its
agent is stuck while its containers answer. So

- silence counts only while this control plane has listened: a round that comes late (the process
  was stopped, the loop was held, the machine slept) begins the count anew;
- copies of a silent instance are asked themselves, and an answer counts as a word from it;
- of what is silent at the same time, only a share is given up at once: what silences many has
  hardly killed them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

from zeropull.resources.instances import Instance, InstanceState
from zeropull.resources.settings import EndpointSettings

LATE_S = 3.0  # beyond the interval of rounds
SHARE = 0.25  # of an endpoint's running instances, at least one

_LEAVING = (InstanceState.DRAINING, InstanceState.TERMINATING)


class Silence:
    """What was heard of each instance, and since when this control plane has listened."""

    def __init__(self, settings: EndpointSettings, monotonic: Callable[[], float]) -> None:
        self._settings = settings
        self._monotonic = monotonic
        self._round_s = self._listening_s = monotonic()
        self._seen_s: dict[str, float] = {}  # first seen running
        self._answered_s: dict[str, float] = {}
        self._given_up: set[str] = set()

    def begin_round(self) -> float:
        """Seconds by which this round is late; 0.0 when it is not."""
        now_s = self._monotonic()
        late_s = now_s - self._round_s - self._settings.interval_s
        self._round_s = now_s
        if late_s < LATE_S:
            return 0.0
        self._listening_s = now_s
        return late_s

    def answered(self, instance_id: str) -> None:
        """A copy on the instance has answered."""
        self._answered_s[instance_id] = self._monotonic()

    def is_doubtful(self, instance: Instance, heard_s: float | None) -> bool:
        """Half of the time is over: its copies had better be asked."""
        return (
            instance.state is InstanceState.RUNNING
            and self._silent_s(instance, heard_s) >= self._settings.node_lost_s / 2
        )

    def lost(self, instances: Collection[Instance], heard_s: Mapping[str, float]) -> dict[str, str]:
        """Those of one endpoint to be given up now, with the sentence that says why.

        `heard_s`: when each was heard of last.
        """
        silent: dict[str, float] = {}
        for instance in instances:
            if instance.state not in (InstanceState.RUNNING, InstanceState.DRAINING):
                continue
            heard = heard_s.get(instance.instance_id)
            for_s = self._silent_s(instance, heard)
            limit_s = self._settings.node_start_s if heard is None else self._settings.node_lost_s
            if for_s >= limit_s:
                silent[instance.instance_id] = for_s
        by_id = {i.instance_id: i for i in instances}
        gone = {
            each
            for each in self._given_up & by_id.keys()
            if each in silent or by_id[each].state in _LEAVING
        }
        self._given_up -= by_id.keys() - gone
        running = sum(i.state is InstanceState.RUNNING for i in instances)
        allowed = max(1, math.floor(SHARE * (running + len(gone)))) - len(gone)
        longest = sorted(silent.keys() - gone, key=lambda each: (-silent[each], each))
        self._given_up |= set(longest[: max(0, allowed)])
        return {
            instance_id: f"the node of {instance_id} has not reported for {for_s:.0f} s"
            for instance_id, for_s in silent.items()
            if instance_id in self._given_up
        }

    def forget_all_but(self, instance_ids: Collection[str]) -> None:
        kept = frozenset(instance_ids)
        self._given_up &= kept
        for times in (self._seen_s, self._answered_s):
            for instance_id in times.keys() - kept:
                del times[instance_id]

    def _silent_s(self, instance: Instance, heard_s: float | None) -> float:
        seen_s = self._seen_s.setdefault(instance.instance_id, self._monotonic())
        last_s = max(
            self._listening_s,
            seen_s if heard_s is None else heard_s,
            self._answered_s.get(instance.instance_id, 0.0),
        )
        return self._monotonic() - last_s
