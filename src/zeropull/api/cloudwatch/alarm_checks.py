"""What a metric alarm must have, beyond what the service model says.

Source: Amazon CloudWatch API reference, PutMetricAlarm.
"""

from __future__ import annotations

import math

from zeropull.api.cloudwatch.faults import invalid_combination, invalid_value, missing
from zeropull.api.cloudwatch.queries import check_statistic, query_of
from zeropull.api.operations import Members
from zeropull.autoscaler.alarms import COMPARISONS
from zeropull.errors import InvalidInput
from zeropull.metricstore.alarm_specs import watched_id
from zeropull.metricstore.queries import check_queries, periods_of
from zeropull.statestore.alarm_history import ACTIONS_OF

MAX_ACTIONS = 5
DAY_S = 86400
WEEK_S = 7 * DAY_S


def check_alarm(members: Members, account: str) -> None:
    """Raises ApiFault or InvalidInput for what PutMetricAlarm does not take."""
    for name in ("EvaluationPeriods", "Threshold", "ComparisonOperator"):
        if members.get(name) is None:
            raise missing(f"The parameter {name} is required.")
    if members["ComparisonOperator"] not in COMPARISONS:
        raise invalid_value(
            f"The value {members['ComparisonOperator']} for parameter ComparisonOperator is not "
            f"supported: {', '.join(COMPARISONS)}."
        )
    if members.get("TreatMissingData", "missing") not in (
        "breaching", "notBreaching", "ignore", "missing",
    ):  # fmt: skip
        raise invalid_value(
            f"The value {members['TreatMissingData']} for parameter TreatMissingData is not one of "
            "breaching, notBreaching, ignore, missing."
        )
    for kind in ACTIONS_OF.values():
        if len(members.get(kind) or []) > MAX_ACTIONS:
            raise invalid_value(f"{kind} has {len(members[kind])} members, at most {MAX_ACTIONS}.")
    if members.get("DatapointsToAlarm", 1) > members["EvaluationPeriods"]:
        raise invalid_value("DatapointsToAlarm must not be greater than EvaluationPeriods.")
    if not math.isfinite(members["Threshold"]):
        raise invalid_value(
            f"The value {members['Threshold']} for parameter Threshold is invalid: it must be "
            "finite."
        )
    if members.get("EvaluateLowSampleCountPercentile", "evaluate") not in ("evaluate", "ignore"):
        raise invalid_value(
            f"The value {members['EvaluateLowSampleCountPercentile']} for parameter "
            "EvaluateLowSampleCountPercentile is not one of evaluate, ignore."
        )
    period = _check_metrics(members, account) if members.get("Metrics") else _check_metric(members)
    _check_evaluated(period, members["EvaluationPeriods"])


def _check_evaluated(period: int, periods: int) -> None:
    if period < 3600 and period * periods > DAY_S:
        raise InvalidInput(
            "Metrics cannot be checked across more than a day (EvaluationPeriods * Period must be "
            f"<= {DAY_S}) for alarms using period < 3600"
        )
    if period * periods > WEEK_S:
        raise InvalidInput(
            "Metrics cannot be checked across more than a week (EvaluationPeriods * Period must be "
            f"<= {WEEK_S}) for alarms using period >= 3600"
        )


def _check_metric(members: Members) -> int:
    for name in ("MetricName", "Namespace", "Period"):
        if members.get(name) is None:
            raise missing(f"The parameter {name} is required, or Metrics.")
    if (members.get("Statistic") is None) == (members.get("ExtendedStatistic") is None):
        raise invalid_combination("Must specify either Statistic or ExtendedStatistic")
    check_statistic(members.get("Statistic") or members["ExtendedStatistic"])
    return _alarm_period(members["Period"])


def _check_metrics(members: Members, account: str) -> int:
    if members.get("MetricName") is not None:
        raise invalid_combination("Must specify either Metrics or MetricName")
    queries = [
        query_of(raw, f"Metrics.member.{number}", account)
        for number, raw in enumerate(members["Metrics"], 1)
    ]
    check_queries(queries)
    return _alarm_period(periods_of(queries)[watched_id(queries)])


def _alarm_period(period: int) -> int:
    if period in (10, 20, 30) or (period > 0 and period % 60 == 0):
        return int(period)
    raise invalid_value(
        f"The value {period} for parameter Period is not 10, 20, 30 or a multiple of 60."
    )
