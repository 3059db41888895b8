"""When a scheduled action is due: at(...), rate(...) and cron(...) with time zones.

Source: Application Auto Scaling user guide, "Schedule scheduled actions"; `cron` has what a cron
expression means.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from zeropull.autoscaler.cron import cron_expression
from zeropull.errors import InvalidInput

_AT = re.compile(r"at\((\d{4}-\d\d-\d\d)T(\d{1,2}):(\d\d:\d\d)\)")
_RATE = re.compile(r"rate\((\d+) (minute|minutes|hour|hours|day|days)\)")
_CRON = re.compile(r"cron\(([^()]*)\)")
_UNIT_S = {"minute": 60, "hour": 3600, "day": 86400}


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
        return _next_cron(schedule, zone, after_s, match[1])
    raise InvalidInput(
        f"{schedule!r} is no schedule: expected at(yyyy-mm-ddThh:mm:ss), rate(n unit) or "
        "cron(minutes hours day-of-month month day-of-week year)"
    )


def _next_cron(schedule: str, zone: ZoneInfo, after_s: float, fields: str) -> float | None:
    try:
        return cron_expression(fields).next_after(after_s, zone)
    except InvalidInput as error:
        raise InvalidInput(f"{schedule!r}: {error.reason}") from error


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise InvalidInput(f"{name!r} is no IANA time zone, such as Europe/Berlin") from error


def utc_text(at_s: float) -> str:
    """For messages."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
