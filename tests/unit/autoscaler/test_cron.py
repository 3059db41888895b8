"""Cron expressions mean what AWS and Quartz document."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from zeropull.autoscaler.cron import cron_expression
from zeropull.autoscaler.cron_fields import HOUR, MINUTE, MONTH, WEEKDAY, YEAR, Field
from zeropull.errors import InvalidInput


def days(day: str, weekday: str, year: int, month: int) -> list[int]:
    return cron_expression(f"0 9 {day} * {weekday} *").days_in(year, month)


@pytest.mark.parametrize(
    ("day", "year", "month", "expected"),
    [
        ("15W", 2026, 7, 15),  # a Wednesday
        ("15W", 2026, 8, 14),  # a Saturday
        ("15W", 2026, 11, 16),  # a Sunday
        ("1W", 2026, 8, 3),  # a Saturday: the 31st would be of the month before
        ("1W", 2026, 11, 2),  # a Sunday
        ("31W", 2026, 5, 29),  # a Sunday: the 1st would be of the month after
        ("30W", 2026, 5, 29),  # a Saturday
        ("28W", 2027, 2, 26),  # a Sunday, and the last day
        ("LW", 2026, 5, 29),  # ends on a Sunday
        ("LW", 2026, 10, 30),  # on a Saturday
        ("LW", 2026, 11, 30),  # on a Monday
        ("L", 2028, 2, 29),
        ("L-3", 2026, 2, 25),
        ("L-1W", 2026, 5, 29),  # the 30th is a Saturday
        ("15w", 2026, 7, 15),
    ],
)
def test_a_day_of_the_month_is_one_of_each_month(
    day: str, year: int, month: int, expected: int
) -> None:
    assert days(day, "?", year, month) == [expected]


@pytest.mark.parametrize("day", ["31", "31W", "L-30"])
def test_a_month_without_that_day_has_none(day: str) -> None:
    assert days(day, "?", 2026, 4) == []


def test_days_of_a_list_are_of_every_kind() -> None:
    assert days("1,L,10-12,28/2", "?", 2026, 4) == [1, 10, 11, 12, 28, 30]
    assert days("29-2", "?", 2026, 4) == [1, 2, 29, 30]


@pytest.mark.parametrize(
    ("weekday", "expected"),
    [
        ("SAT-SUN", [1, 2, 8, 9, 15, 16, 22, 23, 29, 30]),
        ("7-1", [1, 2, 8, 9, 15, 16, 22, 23, 29, 30]),
        ("FRI-MON/2", [2, 7, 9, 14, 16, 21, 23, 28, 30]),
        ("MON-SUN", list(range(1, 32))),
        ("L", [1, 8, 15, 22, 29]),
        ("6L", [28]),
        ("fril", [28]),
        ("SUN#5", [30]),
        ("7#1", [1]),
        ("TUE#5", []),
        ("MON#1,6#3", [3, 21]),
        ("2/2", [3, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, 31]),
    ],
)
def test_days_of_the_week_in_a_month_that_begins_on_a_saturday(
    weekday: str, expected: list[int]
) -> None:
    assert days("?", weekday, 2026, 8) == expected


@pytest.mark.parametrize(
    ("field", "text", "expected"),
    [
        (HOUR, "22-2", (0, 1, 2, 22, 23)),
        (HOUR, "20-4/3", (2, 20, 23)),
        (MINUTE, "*/20", (0, 20, 40)),
        (MINUTE, "5/25", (5, 30, 55)),
        (MINUTE, "50-5/5", (0, 5, 50, 55)),
        (MONTH, "NOV-FEB", (1, 2, 11, 12)),
        (MONTH, "JAN,6-7", (1, 6, 7)),
        (WEEKDAY, "FRI-MON", (1, 2, 6, 7)),
        (YEAR, "2026/100", (2026, 2126)),
        (YEAR, "2030-2034/2", (2030, 2032, 2034)),
    ],
)
def test_ranges_and_steps_of_numbers(field: Field, text: str, expected: tuple[int, ...]) -> None:
    assert field.numbers(text) == expected


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ("0 9 1W,15W * ? *", "W goes with a single day"),
        ("0 9 1-15W * ? *", "day of month '15W' cannot be understood"),
        ("0 9 32W * ? *", "'32' is outside of 1 to 31"),
        ("0 9 L-31 * ? *", "at most L-30"),
        ("0 9 W * ? *", "day of month 'W' cannot be understood"),
        ("0 9 ? * MON#6 *", "day of week 'MON#6' cannot be understood"),
        ("0 9 ? * 15W *", "day of week '15W' cannot be understood"),
        ("0 9 ? * FUN *", "day of week 'FUN' cannot be understood"),
        ("0 9 ? * 8L *", "'8' is outside of 1 to 7"),
        ("0 9 ? FEB-FOO 2 *", "month 'FOO' cannot be understood"),
        ("0/0 9 * * ? *", "no step of 1 or more"),
        ("0/ 9 * * ? *", "no step of 1 or more"),
        ("0, 9 * * ? *", "minute '' cannot be understood"),
        ("? 9 * * ? *", "minute '?' cannot be understood"),
        ("0 9 30,31 FEB ? *", "no day 30,31 in month FEB"),
        ("0 9 31 4,6,9,11 ? *", "no day 31 in month 4,6,9,11"),
        ("0 9 * * ? 2031-2030", "'2031-2030' ends before it begins"),
        ("0 9 * * ? 2200", "outside of 1970 to 2199"),
    ],
)
def test_what_is_refused_is_named(fields: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(why)):
        cron_expression(fields)


def test_a_day_that_comes_once_in_many_years_is_found() -> None:
    february = cron_expression("0 0 ? 2 MON#5 *")
    began = datetime(2026, 1, 1, tzinfo=UTC)
    found = february.next_after(began.timestamp(), ZoneInfo("UTC"))
    assert found == datetime(2044, 2, 29, tzinfo=UTC).timestamp()
    last = datetime(2199, 3, 1, tzinfo=UTC)
    assert february.next_after(last.timestamp(), ZoneInfo("UTC")) is None
