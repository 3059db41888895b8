"""Evaluates metric alarms and keeps their state, reason and history."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime

from zeropull.autoscaler.alarms import AlarmState, Evaluation, evaluate
from zeropull.errors import ZeropullError
from zeropull.metricstore.alarm_specs import AlarmSpec, alarm_spec
from zeropull.metricstore.store import MetricStore
from zeropull.resources.alarms import MetricAlarm
from zeropull.statestore import Store
from zeropull.statestore.alarm_history import record_transition
from zeropull.telemetry import get_logger

log = get_logger(__name__)


def alarms_evaluated(
    store: Store, metrics: MetricStore, alarms: Iterable[MetricAlarm], now_s: float, due: set[str]
) -> Iterator[None]:
    """Evaluate every alarm that is due at `now_s`, one a step: a caller may do something else
    between. Their keys are added to `due`; an alarm that is in it already is left as it is.

    `now_s`: a multiple of 10 s, a little in the past, so that the readings have arrived.
    """
    for alarm in alarms:
        if alarm.key in due:
            continue
        try:
            if not _evaluate(store, metrics, alarm, now_s):
                continue
        except ZeropullError as error:
            log.warning("alarm not evaluated", alarm=alarm.name, error=error.reason)
            continue
        except Exception as error:  # an alarm that cannot be read must not stop the others
            log.error("alarm not evaluated", alarm=alarm.name, error=str(error), exc_info=error)
            continue
        due.add(alarm.key)
        yield


def _evaluate(store: Store, metrics: MetricStore, alarm: MetricAlarm, now_s: float) -> bool:
    """False when it is not due."""
    spec = alarm_spec(alarm.request)
    if int(now_s) % spec.rule.evaluation_interval_s:
        return False
    series = spec.series(metrics, alarm.account, now_s)
    verdict = evaluate(spec.rule, series, now_s, AlarmState(alarm.state))
    says_little = spec.has_too_few_samples(metrics, alarm.account, now_s)
    if verdict.state != alarm.state and not says_little:
        _keep(store, alarm, spec, verdict, now_s)
    return True


def _keep(
    store: Store, alarm: MetricAlarm, spec: AlarmSpec, verdict: Evaluation, now_s: float
) -> None:
    data = _reason_data(spec, verdict, now_s)
    after = replace(
        alarm,
        state=verdict.state.value,
        state_reason=verdict.reason,
        state_reason_data=data,
        state_updated_s=now_s,
        state_transitioned_s=now_s,
        set_s=0.0,
    )
    with store.transaction():
        # The user may have replaced or deleted it while it was evaluated.
        current = store.get(MetricAlarm, alarm.key)
        if current is None or current.document != alarm:
            return
        store.put(after)
        record_transition(store, alarm, after)
    log.info("alarm", alarm=alarm.name, state=after.state, reason=after.state_reason)


def _reason_data(spec: AlarmSpec, verdict: Evaluation, now_s: float) -> str:
    watched = next(query for query in spec.queries if query.query_id == spec.watched)
    points = list(verdict.points)
    data = {
        "version": "1.0",
        "queryDate": _stamp(now_s),
        "startDate": _stamp(points[-1][0]) if points else None,
        "statistic": watched.stat.statistic if watched.stat is not None else None,
        "period": spec.rule.period_s,
        "recentDatapoints": [value for _, value in reversed(points)],
        "threshold": spec.rule.threshold,
        "evaluatedDatapoints": [
            {"timestamp": _stamp(start), "value": value} for start, value in points
        ],
    }
    return json.dumps({name: value for name, value in data.items() if value is not None})


def _stamp(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.000+0000")
