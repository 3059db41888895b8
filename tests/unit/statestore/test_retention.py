"""History is bounded, also that of things that have gone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from zeropull.resources.alarms import AlarmEvent, AlarmHistory, MetricAlarm
from zeropull.resources.endpoints import Endpoint, EndpointStatus
from zeropull.resources.instances import TimelineRecord
from zeropull.resources.scaling import VARIANT_DIMENSION, ScalingActivity
from zeropull.statestore import Store
from zeropull.statestore.retention import ACTIVITIES_S, ALARM_HISTORY_S, Retention

NOW_S = 1_790_000_000.0
ACCOUNT = "000000000001"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "zeropull.db") as opened:
        yield opened


def tidy(store: Store, launches: int = 3) -> None:
    for _ in Retention(store, launches, lambda: NOW_S).steps():
        pass


def launch(number: int, uid: str) -> TimelineRecord:
    return TimelineRecord(
        f"c-{number}", "i", ACCOUNT, uid, "ep", "v", "d", "t", NOW_S - 100 + number
    )


def test_launches_of_deleted_endpoints_are_bounded_all_together(store: Store) -> None:
    store.put(Endpoint(ACCOUNT, "there", "arn", "there", EndpointStatus.IN_SERVICE, 1.0, 1.0))
    for number in range(300):
        store.put(launch(number, f"gone-{number % 7}"))
    for number in range(300, 310):
        store.put(launch(number, "there"))
    tidy(store)
    left = {stored.document.copy_id for stored in store.select(TimelineRecord)}
    assert left == {f"c-{number}" for number in range(297, 310)}


def test_scaling_activities_are_kept_for_six_weeks(store: Store) -> None:
    activity = ScalingActivity(
        "a", ACCOUNT, "endpoint/e/variant/v", VARIANT_DIMENSION, "d", "c", 1.0, "Successful"
    )
    store.put(replace(activity, activity_id="old", ended_s=NOW_S - ACTIVITIES_S - 1))
    store.put(replace(activity, activity_id="new", ended_s=NOW_S - ACTIVITIES_S + 1))
    store.put(replace(activity, activity_id="under way", status="InProgress"))
    tidy(store)
    left = {stored.document.activity_id for stored in store.select(ScalingActivity)}
    assert left == {"new", "under way"}


def test_the_history_of_alarms_is_kept_for_thirty_days(store: Store) -> None:
    old = AlarmEvent(NOW_S - ALARM_HISTORY_S - 1, "StateUpdate", "old")
    new = AlarmEvent(NOW_S - ALARM_HISTORY_S + 1, "StateUpdate", "new")
    store.put(MetricAlarm(ACCOUNT, "there", "arn", 1.0, 1.0, 1.0))
    for name, events in (("there", (old,)), ("gone", (old,)), ("gone lately", (old, new))):
        store.put(AlarmHistory(ACCOUNT, name, events))
    tidy(store)
    left = {s.document.name: s.document.events for s in store.select(AlarmHistory)}
    assert left == {"there": (), "gone lately": (new,)}
