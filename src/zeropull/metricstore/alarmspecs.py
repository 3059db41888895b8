"""What a PutMetricAlarm request asks for, as a rule and the queries that feed it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zeropull.autoscaler.alarms import AlarmRule, MissingData
from zeropull.metricstore.expressions import Series
from zeropull.metricstore.queries import MetricStat, Query, evaluate_queries
from zeropull.metricstore.store import MetricStore


@dataclass(frozen=True, slots=True)
class AlarmSpec:
    """`watched` is the id of the query whose series the rule is applied to."""

    rule: AlarmRule
    queries: tuple[Query, ...]
    watched: str

    def series(self, store: MetricStore, account: str, now_s: float) -> Series:
        """The datapoints that an evaluation at `now_s` may read."""
        start_s = now_s - self.rule.range_s - self.rule.period_s
        return evaluate_queries(store, account, self.queries, start_s, now_s)[self.watched]


def alarm_spec(request: Mapping[str, Any]) -> AlarmSpec:
    """From the members of PutMetricAlarm, which have been checked when it was put."""
    queries, watched, period = _queries(request)
    periods = int(request["EvaluationPeriods"])
    rule = AlarmRule(
        comparison=request["ComparisonOperator"],
        threshold=float(request["Threshold"]),
        period_s=period,
        evaluation_periods=periods,
        datapoints_to_alarm=int(request.get("DatapointsToAlarm", periods)),
        missing=MissingData(request.get("TreatMissingData", "missing")),
    )
    return AlarmSpec(rule, queries, watched)


def query_from(raw: Mapping[str, Any]) -> Query:
    """A MetricDataQuery that has been checked."""
    stat = raw.get("MetricStat")
    return Query(
        query_id=raw["Id"],
        stat=None if stat is None else _stat(stat["Metric"], stat["Stat"], stat),
        expression=raw.get("Expression"),
        period_s=raw.get("Period"),
        label=raw.get("Label"),
        return_data=raw.get("ReturnData", True),
    )


def _queries(request: Mapping[str, Any]) -> tuple[tuple[Query, ...], str, int]:
    raw = request.get("Metrics")
    if not raw:
        statistic = request.get("Statistic") or request["ExtendedStatistic"]
        stat = _stat(request, statistic, request)
        return (Query("m1", stat=stat),), "m1", stat.period_s
    queries = tuple(query_from(each) for each in raw)
    watched = next(query for query in queries if query.return_data)
    periods = [query.stat.period_s for query in queries if query.stat is not None]
    return queries, watched.query_id, watched.period_s or max(periods, default=60)


def _stat(metric: Mapping[str, Any], statistic: str, options: Mapping[str, Any]) -> MetricStat:
    dimensions = {each["Name"]: each["Value"] for each in metric.get("Dimensions") or []}
    return MetricStat(
        namespace=metric["Namespace"],
        name=metric["MetricName"],
        dimensions=dimensions,
        statistic=statistic,
        period_s=int(options.get("Period", 60)),
        unit=options.get("Unit"),
    )
