"""When a scheduled action is due: at(...), rate(...) and cron(...) with time zones.

Source: Application Auto Scaling user guide, "Schedule scheduled actions". Cron has six fields:
minutes, hours, day of month, month, day of week (1 = Sunday), year. Where the clocks go forward, a
time of day that does not exist runs when they do; where they go back, one that comes twice runs the
first time only, unless it is of every hour.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from zeropull.errors import InvalidInput

_AT = re.compile(r"at\((\d{4}-\d\d-\d\d)T(\d{1,2}):(\d\d:\d\d)\)")
_RATE = re.compile(r"rate\((\d+) (minute|minutes|hour|hours|day|days)\)")
_CRON = re.compile(r"cron\(([^()]*)\)")
_UNIT_S = {"minute": 60, "hour": 3600, "day": 86400}
FIRST_YEAR, LAST_YEAR = 1970, 2199
_DAYS = {"SUN": "0", "MON": "1", "TUE": "2", "WED": "3", "THU": "4", "FRI": "5", "SAT": "6"}


def check_schedule(schedule: str, timezone: str) -> None:
    """Raises InvalidInput with the rule that the schedule or the time zone breaks."""
    next_run(schedule, timezone, 0.0, created_s=0.0)


def next_run(schedule: str, timezone: str, after_s: float, *, created_s: float) -> float | None:
    """The first time after `after_s` (Unix seconds); None when there is none any more.

    rate() counts from `created_s`.
    """
    zone = _zone(timezone)
    if match := _AT.fullmatch(schedule):
        try:
            text = f"{match[1]}T{match[2]:0>2}:{match[3]}"
            at_s = datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()
        except ValueError as error:
            raise InvalidInput(f"{schedule!r} names no time: {error}") from error
        return at_s if at_s > after_s else None
    if match := _RATE.fullmatch(schedule):
        every_s = int(match[1]) * _UNIT_S[match[2].rstrip("s")]
        if every_s == 0:
            raise InvalidInput(f"{schedule!r}: the rate must be at least 1")
        steps = max(1, int((after_s - created_s) // every_s) + 1)
        return created_s + steps * every_s
    if match := _CRON.fullmatch(schedule):
        return _next_cron(schedule, match[1].split(), zone, after_s)
    raise InvalidInput(
        f"{schedule!r} is no schedule: expected at(yyyy-mm-ddThh:mm:ss), rate(n unit) or "
        "cron(minutes hours day-of-month month day-of-week year)"
    )


def _next_cron(schedule: str, fields: list[str], zone: ZoneInfo, after_s: float) -> float | None:
    if len(fields) != 6:
        raise InvalidInput(f"{schedule!r} has {len(fields)} fields, cron has 6")
    minute, hour, day, month, weekday, year = fields
    if (day == "?") == (weekday == "?"):
        raise InvalidInput(f"{schedule!r}: exactly one of day-of-month and day-of-week must be ?")
    days = "*" if weekday == "?" else _weekdays(weekday)
    text = f"{minute} {hour} {'*' if day == '?' else day} {month} {days}"
    start = datetime.fromtimestamp(max(after_s, 0.0), zone)
    years = _years(schedule, year)
    try:
        if years is None:
            return _first_after(text, start, after_s)
        for allowed in (each for each in years if each >= start.year):
            # One step into each year that is meant, however many minutes lie between.
            begin = max(start, datetime(allowed, 1, 1, tzinfo=zone) - timedelta(seconds=1))
            found_s = _first_after(text, begin, after_s)
            if found_s is not None and datetime.fromtimestamp(found_s, zone).year == allowed:
                return found_s
    except CronSimError as error:
        raise InvalidInput(f"{schedule!r}: {error}") from error
    return None


def _first_after(text: str, start: datetime, after_s: float) -> float | None:
    """CronSim may give the first of two equal times of day again, during the second one."""
    for moment in CronSim(text, start):
        if moment.timestamp() > after_s:
            return float(moment.timestamp())
    return None


def _weekdays(field: str) -> str:
    """AWS counts from 1 = Sunday, cron from 0 = Sunday (and has a second Sunday, 7)."""
    if re.search(r"(?<![#/\d])([089]|\d\d)", field):
        raise InvalidInput(f"the day of week {field!r} is outside of 1 (Sunday) to 7 (Saturday)")
    named = field.upper()
    for name, number in _DAYS.items():
        named = named.replace(name, f"={number}")
    shifted = re.sub(r"(?<![=#/\d])(\d)", lambda match: str(int(match[1]) - 1), named)
    return shifted.replace("=", "")


def _years(schedule: str, field: str) -> list[int] | None:
    """In order; None for every year."""
    if field == "*":
        return None
    years: set[int] = set()
    for part in field.split(","):
        match = re.fullmatch(r"(\d{4})(?:-(\d{4}))?", part)
        if match is None:
            raise InvalidInput(f"{schedule!r}: the year {part!r} is neither *, a year nor a range")
        first, last = int(match[1]), int(match[2] or match[1])
        if not FIRST_YEAR <= first <= last <= LAST_YEAR:
            raise InvalidInput(
                f"{schedule!r}: the year {part!r} is outside of {FIRST_YEAR} to {LAST_YEAR}"
            )
        years |= set(range(first, last + 1))
    return sorted(years)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise InvalidInput(f"{name!r} is no IANA time zone, such as Europe/Berlin") from error


def utc_text(at_s: float) -> str:
    """For messages."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
