"""Each row of CloudWatch's tables on missing data, and the M-of-N rule."""

from __future__ import annotations

import pytest

from zeropull.autoscaler.alarms import AlarmRule, AlarmState, MissingData, evaluate

ALARM, OK, NONE = AlarmState.ALARM, AlarmState.OK, AlarmState.INSUFFICIENT_DATA


def rule(periods: int = 3, to_alarm: int = 3, missing: str = "missing") -> AlarmRule:
    return AlarmRule("GreaterThanThreshold", 5.0, 10, periods, to_alarm, MissingData(missing))


def series(pattern: str, now: int = 1000) -> dict[int, float]:
    """`0` calm, `X` breaching, `-` missing; oldest first, the last one the newest whole period."""
    starts = range(now - 10 * len(pattern), now, 10)
    values = {"0": 1.0, "X": 9.0}
    return {at: values[mark] for at, mark in zip(starts, pattern, strict=True) if mark != "-"}


@pytest.mark.parametrize(
    ("pattern", "missing", "expected"),
    [
        ("0-X-X", "missing", OK),
        ("0----", "missing", OK),
        ("0----", "ignore", OK),
        ("0----", "breaching", OK),
        ("-----", "missing", NONE),
        ("-----", "breaching", ALARM),
        ("-----", "notBreaching", OK),
        ("0XX-X", "notBreaching", ALARM),
        ("--X--", "missing", ALARM),
        ("--X--", "breaching", ALARM),
        ("--X--", "notBreaching", OK),
        ("----X", "missing", OK),
    ],
)
def test_gaps_are_treated_as_asked(pattern: str, missing: str, expected: AlarmState) -> None:
    assert evaluate(rule(missing=missing), series(pattern), 1000, OK).state is expected


def test_ignore_keeps_the_state_when_there_is_no_data() -> None:
    assert evaluate(rule(missing="ignore"), {}, 1000, ALARM).state is ALARM


def test_two_of_three_points_are_enough_when_asked_for() -> None:
    assert evaluate(rule(3, 2), series("00X0X"), 1000, OK).state is ALARM
    assert evaluate(rule(3, 2), series("0000X"), 1000, OK).state is OK


def test_a_period_that_has_not_ended_is_not_read() -> None:
    points = series("000XX") | {1000: 9.0}
    assert evaluate(rule(), points, 1009, OK).state is OK
    assert evaluate(rule(), points, 1010, OK).state is ALARM


def test_the_reason_names_points_and_threshold() -> None:
    reason = evaluate(rule(1, 1), series("0000X"), 1000, OK).reason
    assert reason == (
        "Threshold Crossed: 1 datapoint [9.0 (01/01/70 00:16:30)] "
        "was greater than the threshold (5.0)."
    )
