"""Scheduled actions are due when Application Auto Scaling's documentation says."""

from __future__ import annotations

import time
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
        ("cron(30 4 1 1 ? 2125-2130)", "", "2125-01-01T04:30:00"),
        ("cron(0 0 1 1 ? 2020,2027)", "Europe/Berlin", "2026-12-31T23:00:00"),
        ("cron(0 9 ? * 6L *)", "", "2026-11-27T09:00:00"),
        ("cron(0 9 ? * MON#2 *)", "", "2026-12-14T09:00:00"),
        ("cron(0 9 L * ? *)", "", "2026-11-30T09:00:00"),
        ("cron(0 9 LW * ? *)", "", "2026-11-30T09:00:00"),
        ("cron(0 9 15W * ? *)", "", "2026-12-15T09:00:00"),
        ("cron(0 9 1W 5 ? *)", "Europe/Berlin", "2027-05-03T07:00:00"),
        ("cron(0 9 ? * SAT-SUN *)", "", "2026-11-28T09:00:00"),
        ("cron(0 9 ? * FRI-MON *)", "Asia/Tokyo", "2026-11-27T00:00:00"),
        ("cron(0 9 ? * 6#3 *)", "", "2026-12-18T09:00:00"),
        ("cron(0 0 1 1 ? 2025/3)", "", "2028-01-01T00:00:00"),
        ("at(2026-11-24T9:36:00)", "America/New_York", "2026-11-24T14:36:00"),
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
        ("cron(0 9 ? * 0 *)", ""),
        ("cron(0 9 ? * 8 *)", ""),
        ("cron(0 9 ? * 2 1066)", ""),
        ("cron(0 9 ? * 2 2031-2030)", ""),
    ],
)
def test_nonsense_is_refused(schedule: str, zone: str) -> None:
    with pytest.raises(InvalidInput):
        check_schedule(schedule, zone)


def runs(schedule: str, zone: str, start: str, end: str) -> list[str]:
    """Every run from one time to another, each found from the one before."""
    found: list[str] = []
    at_s = at(start)
    while True:
        next_s = next_run(schedule, zone, at_s, created_s=0)
        if next_s is None or next_s >= at(end):
            return found
        found.append(datetime.fromtimestamp(next_s, UTC).strftime("%d %H:%M"))
        at_s = next_s


def test_a_time_that_the_clocks_skip_runs_when_they_do() -> None:
    assert runs(
        "cron(30 2 * * ? *)", "Europe/Berlin", "2026-03-28T00:00:00", "2026-03-31T00:00:00"
    ) == ["28 01:30", "29 01:00", "30 00:30"]
    assert next_run(
        "at(2026-03-29T02:30:00)", "Europe/Berlin", at("2026-03-29T00:00:00"), created_s=0
    ) == at("2026-03-29T01:30:00")


def test_the_nearest_weekday_keeps_its_time_of_day_when_the_clocks_change_before_it() -> None:
    """The 29th is the Sunday on which Europe's clocks go forward, and the Monday is nearest."""
    assert runs(
        "cron(30 2 29W 3 ? *)", "Europe/Berlin", "2026-03-01T00:00:00", "2026-04-01T00:00:00"
    ) == ["30 00:30"]
    assert runs(
        "cron(30 2 ? 3 SUN#5 *)", "Europe/Berlin", "2026-03-01T00:00:00", "2026-04-01T00:00:00"
    ) == ["29 01:00"]


def test_a_time_that_comes_twice_runs_once_and_every_hour_runs_every_hour() -> None:
    assert runs(
        "cron(30 2 * * ? *)", "Europe/Berlin", "2026-10-24T00:00:00", "2026-10-27T00:00:00"
    ) == ["24 00:30", "25 00:30", "26 01:30"]
    assert runs(
        "cron(0 * * * ? *)", "Europe/Berlin", "2026-10-24T23:30:00", "2026-10-25T03:30:00"
    ) == ["25 00:00", "25 01:00", "25 02:00", "25 03:00"]


@pytest.mark.parametrize("minute", range(0, 120, 7))
def test_a_run_is_always_in_the_future(minute: int) -> None:
    now_s = at("2026-10-25T00:00:00") + 60 * minute
    for schedule in ("cron(30 2 * * ? *)", "cron(0/15 * * * ? *)", "cron(0 3 ? * 1 *)"):
        found = next_run(schedule, "Europe/Berlin", now_s, created_s=0)
        assert found is not None
        assert found > now_s


def test_a_year_far_away_is_found_without_counting_the_minutes() -> None:
    began_s = time.process_time()
    assert next_run("cron(* * * * ? 2150)", "", NOW, created_s=0) == at("2150-01-01T00:00:00")
    assert time.process_time() - began_s < 0.5
