"""When a scheduled action is due: at(...), rate(...) and cron(...) with time zones.

Source: Application Auto Scaling user guide, "Schedule scheduled actions". Cron has six fields:
minutes, hours, day of month, month, day of week (1 = Sunday), year.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from zeropull.errors import InvalidInput

_AT = re.compile(r"at\((\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\)")
_RATE = re.compile(r"rate\((\d+) (minute|minutes|hour|hours|day|days)\)")
_CRON = re.compile(r"cron\(([^()]*)\)")
_UNIT_S = {"minute": 60, "hour": 3600, "day": 86400}
_DAYS = {"SUN": "0", "MON": "1", "TUE": "2", "WED": "3", "THU": "4", "FRI": "5", "SAT": "6"}
LOOK_AHEAD_DAYS = 366 * 5


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
            at_s = datetime.fromisoformat(match[1]).replace(tzinfo=zone).timestamp()
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
        for moment in CronSim(text, start):
            if years is None or moment.year in years:
                return float(moment.timestamp())
            if moment > start + timedelta(days=LOOK_AHEAD_DAYS) or moment.year > max(years):
                return None
    except CronSimError as error:
        raise InvalidInput(f"{schedule!r}: {error}") from error
    return None


def _weekdays(field: str) -> str:
    """AWS counts from 1 = Sunday, cron from 0 = Sunday."""
    named = field.upper()
    for name, number in _DAYS.items():
        named = named.replace(name, f"={number}")
    shifted = re.sub(r"(?<![=#/\d])(\d)", lambda match: str(int(match[1]) - 1), named)
    return shifted.replace("=", "")


def _years(schedule: str, field: str) -> set[int] | None:
    if field == "*":
        return None
    years: set[int] = set()
    for part in field.split(","):
        match = re.fullmatch(r"(\d{4})(?:-(\d{4}))?", part)
        if match is None:
            raise InvalidInput(f"{schedule!r}: the year {part!r} is neither *, a year nor a range")
        years |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return years


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise InvalidInput(f"{name!r} is no IANA time zone, such as Europe/Berlin") from error


def utc_text(at_s: float) -> str:
    """For messages."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
