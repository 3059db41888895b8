"""Scheduled actions are due when Application Auto Scaling's documentation says."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from zeropull.autoscaler.schedules import check_schedule, next_run
from zeropull.errors import InvalidInput


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


NOW = at("2026-11-24T10:30:00")  # a Tuesday


@pytest.mark.parametrize(
    ("schedule", "zone", "expected"),
    [
        ("at(2026-11-24T12:00:00)", "", "2026-11-24T12:00:00"),
        ("at(2026-11-24T12:00:00)", "Europe/Berlin", "2026-11-24T11:00:00"),
        ("rate(10 minutes)", "", "2026-11-24T10:40:00"),
        ("cron(0 18 * * ? *)", "", "2026-11-24T18:00:00"),
        ("cron(0 9 ? * MON-FRI *)", "", "2026-11-25T09:00:00"),
        ("cron(0 9 ? * 2 *)", "", "2026-11-30T09:00:00"),
        ("cron(0 9 ? * 1 *)", "America/New_York", "2026-11-29T14:00:00"),
        ("cron(0 0 1 1 ? 2028)", "", "2028-01-01T00:00:00"),
    ],
)
def test_the_next_run_is_found(schedule: str, zone: str, expected: str) -> None:
    assert next_run(schedule, zone, NOW, created_s=at("2026-11-24T10:00:00")) == at(expected)


def test_what_is_past_is_not_due_again() -> None:
    assert next_run("at(2026-11-24T10:00:00)", "", NOW, created_s=0) is None
    assert next_run("cron(0 0 1 1 ? 2025)", "", NOW, created_s=0) is None


@pytest.mark.parametrize(
    ("schedule", "zone"),
    [
        ("hourly", ""),
        ("cron(0 18 * * *)", ""),
        ("cron(0 18 * * * *)", ""),
        ("cron(0 99 * * ? *)", ""),
        ("rate(0 minutes)", ""),
        ("at(2026-13-01T00:00:00)", ""),
        ("rate(1 minute)", "Mars/Olympus"),
    ],
)
def test_nonsense_is_refused(schedule: str, zone: str) -> None:
    with pytest.raises(InvalidInput):
        check_schedule(schedule, zone)
