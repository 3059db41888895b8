"""Metric alarms: M breaching datapoints out of the last N, with CloudWatch's rules for gaps.

Source: Amazon CloudWatch user guide, "Alarm evaluation" and "Configuring how CloudWatch alarms
treat missing data".
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from zeropull.autoscaler.readings import Series

EXTRA_PERIODS = 2
"""How much further back than N evaluation periods we look when points are missing (3 -> 5)."""


class AlarmState(StrEnum):
    OK = "OK"
    ALARM = "ALARM"
    INSUFFICIENT_DATA = "INSUFFICIENT_DATA"


class MissingData(StrEnum):
    BREACHING = "breaching"
    NOT_BREACHING = "notBreaching"
    IGNORE = "ignore"
    MISSING = "missing"


_OPERATORS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "GreaterThanOrEqualToThreshold": (operator.ge, "greater than or equal to"),
    "GreaterThanThreshold": (operator.gt, "greater than"),
    "LessThanThreshold": (operator.lt, "less than"),
    "LessThanOrEqualToThreshold": (operator.le, "less than or equal to"),
}

COMPARISONS = tuple(_OPERATORS)


@dataclass(frozen=True, slots=True)
class AlarmRule:
    """When a metric alarm fires. `period_s` 10, 20, 30 or a multiple of 60."""

    comparison: str
    threshold: float
    period_s: int
    evaluation_periods: int
    datapoints_to_alarm: int
    missing: MissingData = MissingData.MISSING

    @property
    def evaluation_interval_s(self) -> int:
        """High-resolution alarms are evaluated every 10 s, the others every minute."""
        return 10 if self.period_s < 60 else 60

    @property
    def range_s(self) -> int:
        """How far back the points go that an evaluation may read."""
        return (self.evaluation_periods + EXTRA_PERIODS) * self.period_s

    def window_end(self, now_s: float) -> int:
        """Where the newest period of an evaluation at `now_s` ends. The window slides by the
        evaluation interval: a period of five minutes ends every minute."""
        return int(now_s // self.evaluation_interval_s) * self.evaluation_interval_s


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`points` are the real datapoints that decided, newest first, as (period start, value)."""

    state: AlarmState
    reason: str
    points: tuple[tuple[int, float], ...]


def evaluate(rule: AlarmRule, series: Series, now_s: float, current: AlarmState) -> Evaluation:
    """The alarm's state at `now_s`, from whole periods only; `current` is kept by `ignore`."""
    newest_first = _window(rule, series, now_s)
    real = [point for point in newest_first if point is not None]
    wanted = rule.evaluation_periods
    if not real:
        return _without_data(rule, current)
    if len(real) >= wanted:
        return _decide(rule, real[:wanted], filled=0)
    gaps = wanted - len(real)
    match rule.missing:
        case MissingData.BREACHING:
            return _decide(rule, real, filled=gaps)
        case MissingData.NOT_BREACHING:
            return _decide(rule, real, filled=0)
        case MissingData.IGNORE:
            evaluation = _decide(rule, real, filled=0)
            if evaluation.state is AlarmState.ALARM or not _all_breach(rule, real):
                return evaluation
            return Evaluation(current, "Too few datapoints to change the state", tuple(real))
        case MissingData.MISSING:
            return _decide_with_gaps(rule, newest_first, real)


def _window(rule: AlarmRule, series: Series, now_s: float) -> list[tuple[int, float] | None]:
    """Points of the evaluation range, newest first; None where a period has no data."""
    end = rule.window_end(now_s)
    starts = (
        end - (back + 1) * rule.period_s for back in range(rule.evaluation_periods + EXTRA_PERIODS)
    )
    return [(start, series[start]) if start in series else None for start in starts]


def _without_data(rule: AlarmRule, current: AlarmState) -> Evaluation:
    periods = rule.evaluation_periods
    unit = "period" if periods == 1 else "periods"
    text = f"no datapoints were received for {periods} {unit}"
    match rule.missing:
        case MissingData.BREACHING:
            state, treated = AlarmState.ALARM, "Breaching"
        case MissingData.NOT_BREACHING:
            state, treated = AlarmState.OK, "NonBreaching"
        case MissingData.IGNORE:
            return Evaluation(current, f"Unchanged: {text}", ())
        case MissingData.MISSING:
            return Evaluation(AlarmState.INSUFFICIENT_DATA, f"Insufficient Data: {text}.", ())
    reason = (
        f"Threshold Crossed: {text} and {periods} missing datapoints were treated as [{treated}]."
    )
    return Evaluation(state, reason, ())


def _decide(rule: AlarmRule, real: list[tuple[int, float]], *, filled: int) -> Evaluation:
    breaching = [point for point in real if _breaches(rule, point[1])]
    if len(breaching) + filled >= rule.datapoints_to_alarm:
        reason = _reason(rule, breaching, "was" if len(breaching) == 1 else "were")
        return Evaluation(AlarmState.ALARM, reason, tuple(real))
    calm = [point for point in real if not _breaches(rule, point[1])]
    shown = calm or real
    return Evaluation(
        AlarmState.OK,
        _reason(rule, shown, "was not" if len(shown) == 1 else "were not"),
        tuple(real),
    )


def _decide_with_gaps(
    rule: AlarmRule, newest_first: list[tuple[int, float] | None], real: list[tuple[int, float]]
) -> Evaluation:
    """Treat missing as missing: gaps neither help nor hinder, but one fresh breaching point among
    gaps is not enough until it is as old as the datapoints that the alarm asks for. A point that
    does not breach, anywhere in the range, keeps the alarm OK."""
    oldest = max(at for at, point in enumerate(newest_first) if point is not None)
    if _all_breach(rule, real) and oldest + 1 >= rule.datapoints_to_alarm:
        reason = _reason(rule, real, "was" if len(real) == 1 else "were")
        return Evaluation(AlarmState.ALARM, reason, tuple(real))
    return _decide(rule, real, filled=0)


def _all_breach(rule: AlarmRule, points: list[tuple[int, float]]) -> bool:
    return all(_breaches(rule, value) for _, value in points)


def _breaches(rule: AlarmRule, value: float) -> bool:
    return _OPERATORS[rule.comparison][0](value, rule.threshold)


def _reason(rule: AlarmRule, points: list[tuple[int, float]], verb: str) -> str:
    shown = ", ".join(f"{value} ({_stamp(start)})" for start, value in points[:5])
    noun = "datapoint" if len(points) == 1 else "datapoints"
    words = _OPERATORS[rule.comparison][1]
    return (
        f"Threshold Crossed: {len(points)} {noun} [{shown}] {verb} {words} "
        f"the threshold ({float(rule.threshold)})."
    )


def _stamp(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%d/%m/%y %H:%M:%S")
