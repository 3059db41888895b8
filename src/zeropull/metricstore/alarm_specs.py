"""What a PutMetricAlarm request asks for, as a rule and the queries that feed it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from zeropull.autoscaler.alarms import AlarmRule, MissingData
from zeropull.errors import InvalidInput
from zeropull.metricstore.expressions import Series
from zeropull.metricstore.queries import (
    MetricStat,
    Query,
    evaluate_queries,
    periods_of,
    series_of,
)
from zeropull.metricstore.store import MetricStore


@dataclass(frozen=True, slots=True)
class AlarmSpec:
    """`watched` is the id of the query whose series the rule is applied to. With fewer samples than
    `least_samples` in the evaluation periods the state is kept, as their percentile says little."""

    rule: AlarmRule
    queries: tuple[Query, ...]
    watched: str
    least_samples: float = 0.0

    def series(self, store: MetricStore, account: str, now_s: float) -> Series:
        """The datapoints that an evaluation at `now_s` may read."""
        end_s = self.rule.window_end(now_s)
        start_s = end_s - self.rule.range_s - self.rule.period_s
        results = evaluate_queries(store, account, self.queries, start_s, end_s, is_sliding=True)
        return results[self.watched]

    def has_too_few_samples(self, store: MetricStore, account: str, now_s: float) -> bool:
        if not self.least_samples:
            return False
        stat = self.queries[0].stat
        assert stat is not None  # only an alarm of one metric has a percentile
        end_s, period_s = self.rule.window_end(now_s), self.rule.period_s
        counts = series_of(
            store,
            account,
            replace(stat, statistic="SampleCount"),
            end_s - self.rule.evaluation_periods * period_s,
            end_s,
            phase_s=end_s % period_s,
        )
        return sum(counts.values()) < self.least_samples


def alarm_spec(request: Mapping[str, Any]) -> AlarmSpec:
    """From the members of PutMetricAlarm, which have been checked when it was put.

    Raises:
        InvalidInput: metric math that cannot be evaluated, or does not say what to watch.
    """
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
    return AlarmSpec(rule, queries, watched, _least_samples(request))


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


def watched_id(queries: Sequence[Query]) -> str:
    """The id of the one query that returns data.

    Raises:
        InvalidInput: none or several do.
    """
    returned = [query.query_id for query in queries if query.return_data]
    if len(returned) != 1:
        raise InvalidInput("Exactly one element of the metrics list should return data.")
    return returned[0]


def _queries(request: Mapping[str, Any]) -> tuple[tuple[Query, ...], str, int]:
    raw = request.get("Metrics")
    if not raw:
        statistic = request.get("Statistic") or request["ExtendedStatistic"]
        stat = _stat(request, statistic, request)
        return (Query("m1", stat=stat),), "m1", stat.period_s
    queries = tuple(query_from(each) for each in raw)
    watched = watched_id(queries)
    return queries, watched, periods_of(queries)[watched]


def _least_samples(request: Mapping[str, Any]) -> float:
    """Source: "Percentile-based alarms and low data samples" of the user guide."""
    statistic = request.get("ExtendedStatistic")
    if not statistic or request.get("EvaluateLowSampleCountPercentile") != "ignore":
        return 0.0
    share = float(statistic.removeprefix("p")) / 100
    rarer = min(share, 1 - share)
    return round(10 / rarer, 6) if rarer > 0 else 0.0


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
