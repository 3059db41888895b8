"""When a cron expression of six fields is due: minutes, hours, day of month, month, day of week
(1 = Sunday) and year.

`zeropull.autoscaler.cron_fields` says what the fields mean. When the clocks go forward, a time of
day that does not exist runs at that moment. When they go back, a time that comes twice runs the
first time only, unless its minutes or hours begin with `*`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import product
from zoneinfo import ZoneInfo

from zeropull.autoscaler.cron_fields import (
    HOUR,
    MINUTE,
    MONTH,
    YEAR,
    DayRule,
    days_of_month,
    days_of_week,
)
from zeropull.errors import InvalidInput

CALENDARS = range(2000, 2028)
"""Years in which every day of the year has been every day of the week, leap years or not."""


@dataclass(frozen=True, slots=True, eq=False)  # eq: the cache knows it by its identity
class CronExpression:
    """`follows_the_hours`: due in every hour that passes, also one that the clocks repeat."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    months: tuple[int, ...]
    years: tuple[int, ...]
    days: tuple[DayRule, ...]
    follows_the_hours: bool

    def next_after(self, after_s: float, zone: ZoneInfo) -> float | None:
        """The first time after `after_s` (Unix seconds); None when there is none any more."""
        for day in self._days_from(datetime.fromtimestamp(max(after_s, 0.0), zone).date()):
            moments = _moments(self, day, zone)
            number = bisect_right(moments, after_s)
            if number < len(moments):
                return moments[number]
        return None

    def days_in(self, year: int, month: int) -> list[int]:
        """In order."""
        found = {day for rule in self.days for day in rule(year, month)}
        return sorted(day for day in found if 1 <= day <= monthrange(year, month)[1])

    def _days_from(self, first: date) -> Iterator[date]:
        years = self.years[bisect_left(self.years, first.year) :]
        for year, month in product(years, self.months):
            for day in self.days_in(year, month):
                if (found := date(year, month, day)) >= first:
                    yield found


@lru_cache(maxsize=256)
def cron_expression(text: str) -> CronExpression:
    """From the six fields, upper or lower case.

    Raises:
        InvalidInput: the rule that one of them breaks, or that no month has such a day.
    """
    fields = text.upper().split()
    if len(fields) != 6:
        raise InvalidInput(f"there are {len(fields)} fields, cron has 6")
    minute, hour, day, month, weekday, year = fields
    if (day == "?") == (weekday == "?"):
        raise InvalidInput("exactly one of day-of-month and day-of-week must be ?")
    cron = CronExpression(
        minutes=MINUTE.numbers(minute),
        hours=HOUR.numbers(hour),
        months=MONTH.numbers(month),
        years=YEAR.numbers(year),
        days=days_of_week(weekday) if day == "?" else days_of_month(day),
        follows_the_hours=minute.startswith("*") or hour.startswith("*"),
    )
    if not any(cron.days_in(*each) for each in product(CALENDARS, cron.months)):
        raise InvalidInput(f"there is no day {day} in month {month}")
    return cron


@lru_cache(maxsize=256)
def _moments(cron: CronExpression, day: date, zone: ZoneInfo) -> tuple[float, ...]:
    """Every time of that day, as Unix seconds, in order: asked for each second, found once."""
    found: set[float] = set()
    for hour, minute in product(cron.hours, cron.minutes):
        moment = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone)
        if cron.follows_the_hours:
            if _exists(moment):
                found |= {moment.timestamp(), moment.replace(fold=1).timestamp()}
            continue
        while not _exists(moment):
            moment += timedelta(minutes=1)
        found.add(moment.timestamp())
    return tuple(sorted(found))


def _exists(moment: datetime) -> bool:
    """False for a time of day that the clocks skip."""
    there = moment.astimezone(UTC).astimezone(moment.tzinfo)
    return there.replace(tzinfo=None) == moment.replace(tzinfo=None)
