"""The fields of a cron expression: which minutes, hours, months, years and days they mean.

Source: Amazon EventBridge user guide, "Cron expressions reference", and, for what it leaves open,
the Quartz scheduler's "Cron Trigger Tutorial": a range whose end lies before its start goes on at
the field's beginning (SAT-SUN, 22-2), a step counts from the start of its range, L is the last day
of a month (L-3: three days before it) or of a week, 6L the last Friday, 6#3 the third, 15W the
weekday nearest to the 15th and LW the last one; W never leaves the month.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

from zeropull.errors import InvalidInput

DayRule = Callable[[int, int], Iterable[int]]
"""(year, month) -> days of that month, in any order; some may lie outside of it."""

_LAST_DAY = re.compile(r"L(?:-(\d{1,2}))?(W?)")
_NEAREST = re.compile(r"(\d{1,2})W")
_LAST_WEEKDAY = re.compile(r"(\w+)L")
_NTH_WEEKDAY = re.compile(r"(\w+)#([1-5])")
_SATURDAY, _SUNDAY = 5, 6  # as `calendar` counts


@dataclass(frozen=True, slots=True)
class Field:
    """Whole numbers from `first` to `last`; `names` stand for the first ones, in order."""

    what: str
    first: int
    last: int
    names: tuple[str, ...] = ()
    wraps: bool = True

    def numbers(self, text: str) -> tuple[int, ...]:
        """What a list of numbers, ranges and steps means, in order.

        Raises:
            InvalidInput: names the part that is neither, or what lies outside.
        """
        return tuple(sorted({n for part in text.split(",") for n in self._part(part)}))

    def number(self, text: str) -> int:
        """Raises InvalidInput for what is neither a name nor a number of this field."""
        if text in self.names:
            return self.first + self.names.index(text)
        if not re.fullmatch(r"[0-9]{1,4}", text):
            raise InvalidInput(f"the {self.what} {text!r} cannot be understood")
        if not self.first <= int(text) <= self.last:
            raise InvalidInput(
                f"the {self.what} {text!r} is outside of {self.first} to {self.last}"
            )
        return int(text)

    def _part(self, part: str) -> Iterable[int]:
        span, slash, step = part.partition("/")
        if slash and not re.fullmatch(r"0*[1-9]\d{0,3}", step):
            raise InvalidInput(f"the {self.what} {part!r} has no step of 1 or more behind its /")
        start, dash, end = span.partition("-")
        low = self.first if span == "*" else self.number(start)
        high = self.number(end) if dash else self.last if span == "*" or slash else low
        size = self.last - self.first + 1
        if high < low:
            if not self.wraps:
                raise InvalidInput(f"the {self.what} {part!r} ends before it begins")
            high += size
        return ((n - self.first) % size + self.first for n in range(low, high + 1, int(step or 1)))


MINUTE = Field("minute", 0, 59)
HOUR = Field("hour", 0, 23)
DAY = Field("day of month", 1, 31)
MONTH = Field(
    "month", 1, 12,
    ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"),
)  # fmt: skip
WEEKDAY = Field("day of week", 1, 7, ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"))
YEAR = Field("year", 1970, 2199, wraps=False)


def days_of_month(text: str) -> tuple[DayRule, ...]:
    """The rules of a day-of-month field, each for itself.

    Raises:
        InvalidInput: names the part that cannot be understood.
    """
    parts = text.split(",")
    if len(parts) > 1 and any("W" in part for part in parts):
        raise InvalidInput(f"the day of month {text!r}: W goes with a single day, not with a list")
    return tuple(_day_of_month(part) for part in parts)


def days_of_week(text: str) -> tuple[DayRule, ...]:
    """The rules of a day-of-week field, each for itself.

    Raises:
        InvalidInput: names the part that cannot be understood.
    """
    return tuple(_day_of_week(part) for part in text.split(","))


def _day_of_month(part: str) -> DayRule:
    if match := _LAST_DAY.fullmatch(part):
        return _from_the_end(int(match[1] or 0), is_weekday=bool(match[2]))
    if match := _NEAREST.fullmatch(part):
        day = DAY.number(match[1])
        return lambda year, month: _nearest(year, month, day)
    days = DAY.numbers(part)
    return lambda year, month: days


def _from_the_end(before: int, *, is_weekday: bool) -> DayRule:
    if before >= DAY.last:
        raise InvalidInput(f"the day of month L-{before}: at most L-{DAY.last - 1}")
    if is_weekday:
        return lambda year, month: _nearest(year, month, monthrange(year, month)[1] - before)
    return lambda year, month: (monthrange(year, month)[1] - before,)


def _day_of_week(part: str) -> DayRule:
    if part == "L":
        part = "SAT"
    if match := _LAST_WEEKDAY.fullmatch(part):
        last = WEEKDAY.number(match[1])
        return lambda year, month: _weekdays(year, month, last)[-1:]
    if match := _NTH_WEEKDAY.fullmatch(part):
        weekday, nth = WEEKDAY.number(match[1]), int(match[2])
        return lambda year, month: _weekdays(year, month, weekday)[nth - 1 : nth]
    weekdays = WEEKDAY.numbers(part)
    return lambda year, month: chain(*(_weekdays(year, month, each) for each in weekdays))


def _nearest(year: int, month: int, day: int) -> Iterable[int]:
    """The weekday of the same month that is nearest to `day`; none when it has no such day."""
    first, length = monthrange(year, month)
    if not 1 <= day <= length:
        return ()
    weekday = (first + day - 1) % 7
    if weekday == _SATURDAY:
        return (day - 1,) if day > 1 else (day + 2,)
    if weekday == _SUNDAY:
        return (day + 1,) if day < length else (day - 2,)
    return (day,)


def _weekdays(year: int, month: int, weekday: int) -> range:
    """The days of the month that are a `weekday`, 1 = Sunday."""
    first, length = monthrange(year, month)
    sunday_first = (first + 1) % 7 + 1
    return range((weekday - sunday_first) % 7 + 1, length + 1, 7)
