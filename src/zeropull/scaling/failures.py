"""Errors that nobody foresaw, by target: each is recorded as an activity, and the target is left
alone for a while, so that one bad document costs neither the others nor the processor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from zeropull.autoscaler.readings import Decision, NotScaled
from zeropull.backoff import Backoff
from zeropull.errors import DiskFull, ZeropullError
from zeropull.resources.scaling import ScalableTarget
from zeropull.scaling.targets import TargetStates
from zeropull.telemetry import get_logger

PAUSE = Backoff(first_s=1.0, limit_s=300.0)

log = get_logger(__name__)


@dataclass(slots=True)
class _Failing:
    failures: int
    until_s: float


class TargetFailures:
    """Which targets fail, how often in a row, and until when they are left alone."""

    def __init__(self, states: TargetStates) -> None:
        self._states = states
        self._failing: dict[str, _Failing] = {}

    def is_paused(self, target: ScalableTarget, now_s: float) -> bool:
        failing = self._failing.get(target.key)
        return failing is not None and now_s < failing.until_s

    @contextlib.contextmanager
    def noted(self, target: ScalableTarget, now_s: float) -> Iterator[None]:
        """An error inside is kept with its reason and goes no further; no error ends the row."""
        try:
            yield
        except Exception as error:
            self._note(target, error, now_s)
        else:
            self._failing.pop(target.key, None)

    def forget_others(self, known: set[str]) -> None:
        for key in self._failing.keys() - known:
            del self._failing[key]

    def _note(self, target: ScalableTarget, error: Exception, now_s: float) -> None:
        before = self._failing.get(target.key)
        failures = before.failures + 1 if before is not None else 1
        pause_s = PAUSE.after(failures)
        self._failing[target.key] = _Failing(failures, now_s + pause_s)
        is_ours = isinstance(error, ZeropullError)
        what = str(error) if is_ours else f"{type(error).__name__}: {error}"
        reason = f"no decision could be made: {what}"
        log.error(
            "target not decided",
            target=target.resource_id,
            error=what,
            again_in_s=pause_s,
            exc_info=None if is_ours else error,
        )
        if isinstance(error, DiskFull):
            return  # an activity could not be written either
        try:
            state = self._states.of(target, now_s)
            capacity = state.decision.desired if state.decision is not None else target.minimum
            state.decision = Decision(capacity, reason, None, NotScaled.INTERNAL)
            state.decided_s = now_s
            state.activities.note_not_scaled(target, NotScaled.INTERNAL, capacity, reason, now_s)
        except Exception as another:  # the target's own activities cannot be read, say
            log.error("failure not recorded", target=target.resource_id, error=str(another))
