"""Each row of CloudWatch's tables on missing data, and the M-of-N rule."""

from __future__ import annotations

from typing import Any

import pytest

from zeropull.autoscaler.alarms import AlarmRule, AlarmState, MissingData, evaluate

ALARM, OK, NONE = AlarmState.ALARM, AlarmState.OK, AlarmState.INSUFFICIENT_DATA
KEPT = None


def rule(periods: int = 3, to_alarm: int = 3, missing: str = "missing") -> AlarmRule:
    return AlarmRule("GreaterThanThreshold", 5.0, 10, periods, to_alarm, MissingData(missing))


def series(pattern: str, now: int = 1000) -> dict[int, float]:
    """`0` calm, `X` breaching, `-` missing; oldest first, the last one the newest whole period."""
    starts = range(now - 10 * len(pattern), now, 10)
    values = {"0": 1.0, "X": 9.0}
    return {at: values[mark] for at, mark in zip(starts, pattern, strict=True) if mark != "-"}


# The rows of both tables of the user guide, by missing, ignore, breaching, notBreaching;
# what is retained is tried from two states.
THREE_OF_THREE = [
    ("0-X-X", OK, OK, OK, OK),
    ("0----", OK, OK, OK, OK),
    ("-----", NONE, KEPT, ALARM, OK),
    ("0XX-X", ALARM, ALARM, ALARM, ALARM),
    ("--X--", ALARM, KEPT, ALARM, OK),
]
TWO_OF_THREE = [
    ("0-X-X", ALARM, ALARM, ALARM, ALARM),
    ("00X0X", ALARM, ALARM, ALARM, ALARM),
    ("0-X--", OK, OK, ALARM, OK),
    ("----0", OK, OK, ALARM, OK),
    ("---X-", ALARM, KEPT, ALARM, OK),
]


@pytest.mark.parametrize("before", [OK, ALARM, NONE])
@pytest.mark.parametrize(
    ("to_alarm", "row"), [(3, row) for row in THREE_OF_THREE] + [(2, row) for row in TWO_OF_THREE]
)
def test_gaps_are_treated_as_the_user_guide_says(
    to_alarm: int, row: Any, before: AlarmState
) -> None:
    pattern, *expected = row
    found = [
        evaluate(rule(3, to_alarm, missing), series(pattern), 1000, before).state
        for missing in ("missing", "ignore", "breaching", "notBreaching")
    ]
    assert found == [before if each is KEPT else each for each in expected]


@pytest.mark.parametrize("pattern", ["----X", "---X-", "--X-0"])
def test_fresh_breaching_points_among_gaps_do_not_alarm_yet(pattern: str) -> None:
    assert evaluate(rule(), series(pattern), 1000, OK).state is OK


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


def test_periods_longer_than_a_minute_slide_with_every_minute() -> None:
    slow = AlarmRule("GreaterThanThreshold", 5.0, 300, 1, 1)
    assert evaluate(slow, {60: 9.0}, 360, OK).state is ALARM  # from minute 1 to minute 6
    assert evaluate(slow, {0: 9.0}, 420, OK).state is NONE  # that was minutes 0 to 5
