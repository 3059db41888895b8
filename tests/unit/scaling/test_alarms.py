"""Alarms are evaluated when they are due."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zeropull.metricstore.points import Point
from zeropull.metricstore.store import MetricKey, MetricStore
from zeropull.resources.alarms import AlarmHistory, MetricAlarm
from zeropull.scaling.alarms import alarms_evaluated
from zeropull.statestore import Store

ACCOUNT = "000000000000"
KEY = MetricKey.of(ACCOUNT, "own", "errors", {})
NOW_S = 1_790_000_040


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "state.db") as made:
        yield made


@pytest.fixture
def metrics(tmp_path: Path) -> Iterator[MetricStore]:
    made = MetricStore(tmp_path / "metrics.db")
    yield made
    made.close()


def put_alarm(store: Store, name: str = "errors", **more: Any) -> None:
    request = {
        "Namespace": "own", "MetricName": "errors", "Statistic": "Sum", "Period": 10,
        "EvaluationPeriods": 1, "Threshold": 0.0, "ComparisonOperator": "GreaterThanThreshold",
    }  # fmt: skip
    store.put(
        MetricAlarm(ACCOUNT, name, f"arn:{name}", NOW_S, NOW_S, NOW_S, request=request | more)
    )


def evaluated(store: Store, metrics: MetricStore, now_s: float) -> set[str]:
    """Keys of the alarms that were due."""
    due: set[str] = set()
    alarms = [stored.document for stored in store.select(MetricAlarm)]
    for _ in alarms_evaluated(store, metrics, alarms, now_s, due):
        pass
    return due


def state(store: Store, name: str = "errors") -> str:
    return store.require(MetricAlarm, f"{ACCOUNT}/{name}").document.state


def test_a_transition_is_kept_with_reason_data_and_history(
    store: Store, metrics: MetricStore
) -> None:
    put_alarm(store)
    metrics.observe(KEY, NOW_S - 5, 3.0, resolution=1)
    assert evaluated(store, metrics, NOW_S) == {f"{ACCOUNT}/errors"}
    alarm = store.require(MetricAlarm, f"{ACCOUNT}/errors").document
    assert alarm.state == "ALARM"
    assert "was greater than the threshold (0.0)" in alarm.state_reason
    assert '"recentDatapoints": [3.0]' in alarm.state_reason_data
    history = store.require(AlarmHistory, f"{ACCOUNT}/errors").document
    assert [event.kind_of for event in history.events] == ["StateUpdate"]
    data = json.loads(history.events[0].data)
    assert data["oldState"]["stateReason"] == "Unchecked: Initial alarm creation"
    assert data["newState"]["stateValue"] == "ALARM"
    assert data["newState"]["stateReasonData"]["recentDatapoints"] == [3.0]


def test_the_actions_of_a_transition_are_in_the_history(store: Store, metrics: MetricStore) -> None:
    policy, mail = "arn:aws:autoscaling:r:1:scalingPolicy:p", "arn:aws:sns:r:1:mail"
    put_alarm(store, AlarmActions=[policy, mail])
    metrics.observe(KEY, NOW_S - 5, 3.0, resolution=1)
    evaluated(store, metrics, NOW_S)
    history = store.require(AlarmHistory, f"{ACCOUNT}/errors").document
    actions = [event.summary for event in history.events if event.kind_of == "Action"]
    assert actions[0] == f"Successfully executed action {policy}"
    assert actions[1].startswith(f"Failed to execute action {mail}: only scaling policies")
    data = [json.loads(event.data) for event in history.events if event.kind_of == "Action"]
    assert [each["actionState"] for each in data] == ["Succeeded", "Failed"]
    assert [each["notificationResource"] for each in data] == [policy, mail]


def test_a_period_of_five_minutes_ends_every_minute(store: Store, metrics: MetricStore) -> None:
    put_alarm(store, Period=300, Threshold=5.0)
    for minute in range(5):
        metrics.observe(KEY, NOW_S - 60 * minute - 30, 1.5)
    assert NOW_S % 300
    evaluated(store, metrics, NOW_S)
    assert state(store) == "ALARM"  # 7.5 in the five minutes that have just ended
    evaluated(store, metrics, NOW_S + 120)
    assert state(store) == "OK"  # 4.5 in those that end two minutes later


def test_a_percentile_of_few_samples_keeps_the_state_when_asked_to(
    store: Store, metrics: MetricStore
) -> None:
    percentile = {"Statistic": None, "ExtendedStatistic": "p90"}
    put_alarm(store, "evaluates", **percentile)
    put_alarm(store, "ignores", **percentile, EvaluateLowSampleCountPercentile="ignore")
    point = Point()
    point.add(7.0, 99, with_sketch=True)
    metrics.add(KEY, NOW_S - 5, point, resolution=1)
    evaluated(store, metrics, NOW_S)
    assert (state(store, "evaluates"), state(store, "ignores")) == ("ALARM", "INSUFFICIENT_DATA")
    point.add(7.0, 1, with_sketch=True)
    metrics.add(KEY, NOW_S + 5, point, resolution=1)
    evaluated(store, metrics, NOW_S + 10)
    assert state(store, "ignores") == "ALARM"  # 10 / (1 - 0.9) samples are enough


@pytest.mark.parametrize(
    "change",
    [
        {"Statistic": None, "ExtendedStatistic": "tm90"},
        {"Statistic": None, "ExtendedStatistic": "p"},
        {"Metrics": [{"Id": "e", "Expression": "1", "ReturnData": False}]},
        {"Metrics": [{"Id": "e", "Expression": "CEIL(MAX(FILL(e, 1)))"}]},
    ],
)
def test_what_an_older_version_let_in_does_not_stop_the_others(
    store: Store, metrics: MetricStore, change: dict[str, Any]
) -> None:
    put_alarm(store, "broken", **change)
    put_alarm(store)
    metrics.observe(KEY, NOW_S - 5, 3.0, resolution=1)
    assert evaluated(store, metrics, NOW_S) == {f"{ACCOUNT}/errors"}
    assert state(store) == "ALARM"


def test_alarms_by_the_minute_are_evaluated_once_a_minute(
    store: Store, metrics: MetricStore
) -> None:
    put_alarm(store, "slow", Period=60)
    put_alarm(store, "quick")
    assert evaluated(store, metrics, NOW_S) == {f"{ACCOUNT}/slow", f"{ACCOUNT}/quick"}
    assert evaluated(store, metrics, NOW_S + 10) == {f"{ACCOUNT}/quick"}


def test_one_alarm_that_cannot_be_evaluated_leaves_the_others_alone(
    store: Store, metrics: MetricStore
) -> None:
    queries = [{"Id": "e", "Expression": "nowhere + 1", "ReturnData": True}]
    put_alarm(store, "broken", Metrics=queries)
    put_alarm(store)
    metrics.observe(KEY, NOW_S - 5, 3.0, resolution=1)
    evaluated(store, metrics, NOW_S)
    assert state(store) == "ALARM"
