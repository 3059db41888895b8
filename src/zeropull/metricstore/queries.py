"""Queries over the store: statistics of metrics, and expressions over other queries' results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

from zeropull.errors import InvalidInput
from zeropull.metricstore.expressions import (
    Result,
    Series,
    evaluate_expression,
    names_in,
    needs_all_metrics,
)
from zeropull.metricstore.points import Point
from zeropull.metricstore.store import MetricKey, MetricStore

DEFAULT_PERIOD_S = 60
_MINUTE_S = 60
MAX_PERIODS = 100_800
"""An expression has a value at no more timestamps than that, as many as a page of GetMetricData."""
MAX_KEPT = 1_000_000
"""Datapoints that expressions of several series may keep for others: some 100 MB."""


@dataclass(frozen=True, slots=True)
class MetricStat:
    """A statistic of one metric. `unit` None: whatever unit it came in. `period_s` 1, 5, 10, 20,
    30 or a multiple of 60."""

    namespace: str
    name: str
    dimensions: Mapping[str, str] = field(default_factory=dict)
    statistic: str = "Average"
    period_s: int = DEFAULT_PERIOD_S
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """Either `stat` or `expression`. `period_s` is that of an expression."""

    query_id: str
    stat: MetricStat | None = None
    expression: str | None = None
    period_s: int | None = None
    label: str | None = None
    return_data: bool = True


def evaluate_queries(
    store: MetricStore,
    account: str,
    queries: Sequence[Query],
    start_s: float,
    end_s: float,
    *,
    is_sliding: bool = False,
    max_kept: int = MAX_KEPT,
) -> dict[str, Series]:
    """The series of every query that returns data, by id. Periods begin at whole multiples of their
    length, or, when `is_sliding`, so that the last one ends at `end_s`.

    Raises:
        InvalidInput: an id given twice, an unknown id, expressions that need each other, or one
            that returns several series.
    """
    periods = periods_of(queries)
    metrics = [query.query_id for query in queries if query.stat is not None]
    results: dict[str, Result] = {}
    kept = 0
    for query in _in_order(queries):
        name = query.query_id
        phase_s = int(end_s) % periods[name] if is_sliding else 0
        if query.stat is not None:
            results[name] = series_of(store, account, query.stat, start_s, end_s, phase_s=phase_s)
        else:
            timestamps = _timestamps(name, periods[name], start_s, end_s, phase_s)
            shared = _shared(query, queries, periods, start_s, end_s, phase_s)
            value = results[name] = _value(query, results, metrics, timestamps, shared)
            if isinstance(value, list):
                kept += sum(len(series) for series in value)
        if kept > max_kept:
            raise InvalidInput(
                f"Error in expression '{name}': with it, expressions of several series have {kept} "
                f"datapoints, at most {max_kept}: ask for less time or a longer Period."
            )
    return {
        query.query_id: _single(query, results[query.query_id])
        for query in queries
        if query.return_data
    }


def check_queries(queries: Sequence[Query]) -> None:
    """Raises InvalidInput when they could not be evaluated, whatever the data."""
    metrics = [query.query_id for query in queries if query.stat is not None]
    results: dict[str, Result] = {name: {} for name in metrics}
    for query in _in_order(queries):
        if query.stat is None:
            results[query.query_id] = _value(query, results, metrics, range(0))
        if query.return_data:
            _single(query, results[query.query_id])


def periods_of(queries: Sequence[Query]) -> dict[str, int]:
    """By id: the query's own period, or the longest of those that its expression needs.

    Raises:
        InvalidInput: as evaluate_queries.
    """
    by_id = {query.query_id: query for query in queries}
    periods: dict[str, int] = {}
    for query in _in_order(queries):
        if query.stat is not None:
            periods[query.query_id] = query.stat.period_s
        elif query.period_s is not None:
            periods[query.query_id] = query.period_s
        else:
            needed = [periods[name] for name in _needed(query, by_id)]
            periods[query.query_id] = max(needed, default=DEFAULT_PERIOD_S)
    return periods


def series_of(
    store: MetricStore,
    account: str,
    stat: MetricStat,
    start_s: float,
    end_s: float,
    *,
    phase_s: int = 0,
) -> Series:
    """Values by period start; periods without data, or without that statistic, are absent."""
    points: dict[int, Point] = {}
    for key in _keys(store, account, stat):
        found = points_of(store, key, start_s, end_s, stat.period_s, phase_s=phase_s)
        for start, point in found.items():
            points.setdefault(start, Point()).merge(point)
    values = {start: point.statistic(stat.statistic) for start, point in sorted(points.items())}
    return {start: value for start, value in values.items() if value is not None}


def points_of(
    store: MetricStore,
    key: MetricKey,
    start_s: float,
    end_s: float,
    period_s: int,
    *,
    phase_s: int = 0,
) -> dict[int, Point]:
    """As `MetricStore.read`; of a metric that comes by the minute, each minute stands in the first
    of its shorter periods, as CloudWatch has it."""
    points = store.read(key, start_s, end_s, period_s, phase_s=phase_s)
    if period_s >= _MINUTE_S or phase_s % _MINUTE_S:
        return points
    known = {start // _MINUTE_S for start in points}
    wanted = range(-(-int(start_s) // _MINUTE_S), -(-int(end_s) // _MINUTE_S))
    if known.issuperset(wanted):
        return points
    for start, point in store.read(key, start_s, end_s, _MINUTE_S).items():
        if start // _MINUTE_S not in known and start_s <= start < end_s:
            points[start] = point
    return points


def _in_order(queries: Sequence[Query]) -> list[Query]:
    """Every query after those that its expression needs."""
    by_id = {query.query_id: query for query in queries}
    if len(by_id) < len(queries):
        raise InvalidInput("The values for parameter id in MetricDataQueries are not unique.")
    needs = {query.query_id: _needed(query, by_id) for query in queries}
    try:
        return [by_id[name] for name in TopologicalSorter(needs).static_order()]
    except CycleError as error:
        circle = " needs ".join(reversed(error.args[1]))
        raise InvalidInput(f"Error in expression '{error.args[1][0]}': {circle}") from error


def _single(query: Query, result: Result) -> Series:
    if isinstance(result, dict):
        return result
    raise InvalidInput(
        f"Error in expression '{query.query_id}': the expression {query.expression!r} gives "
        "several series, but one is returned: SUM or AVG makes one of them, ReturnData false keeps "
        "them for other expressions"
    )


def _value(
    query: Query,
    results: Mapping[str, Result],
    metrics: Sequence[str],
    timestamps: range,
    shared: range | None = None,
) -> Result:
    assert query.expression is not None
    try:
        return evaluate_expression(
            query.expression, results, timestamps=timestamps, metrics=metrics, shared=shared
        )
    except InvalidInput as error:
        raise InvalidInput(f"Error in expression '{query.query_id}': {error.reason}") from error


def _shared(
    query: Query,
    queries: Sequence[Query],
    periods: Mapping[str, int],
    start_s: float,
    end_s: float,
    phase_s: int,
) -> range | None:
    """Where the longest period of those that the expression needs begins; None: all are alike."""
    needed = {periods[name] for name in _needed(query, {q.query_id: q for q in queries})}
    if len(needed) < 2:
        return None
    return _timestamps(query.query_id, max(needed), start_s, end_s, phase_s)


def _timestamps(name: str, period_s: int, start_s: float, end_s: float, phase_s: int) -> range:
    low = int((start_s - phase_s) // period_s) * period_s + phase_s
    high = int(-(-(end_s - phase_s) // period_s)) * period_s + phase_s
    found = range(low, high, period_s)
    if len(found) > MAX_PERIODS:
        raise InvalidInput(
            f"Error in expression '{name}': the time range has {len(found)} periods of {period_s} "
            f"s, at most {MAX_PERIODS} can be computed: ask for less time or a longer Period."
        )
    return found


def _needed(query: Query, by_id: Mapping[str, Query]) -> list[str]:
    if query.expression is None:
        return []
    try:
        names = names_in(query.expression)
        if needs_all_metrics(query.expression):
            names |= {name for name, other in by_id.items() if other.stat is not None}
    except InvalidInput as error:
        raise InvalidInput(f"Error in expression '{query.query_id}': {error.reason}") from error
    unknown = sorted(names - by_id.keys())
    if unknown:
        raise InvalidInput(
            f"Error in expression '{query.query_id}': the expression {query.expression!r} has the "
            f"unknown id {unknown[0]!r}"
        )
    return sorted(names)


def _keys(store: MetricStore, account: str, stat: MetricStat) -> list[MetricKey]:
    if stat.unit is not None:
        dimensions = dict(stat.dimensions)
        return [MetricKey.of(account, stat.namespace, stat.name, dimensions, stat.unit)]
    return store.units_of(account, stat.namespace, stat.name, stat.dimensions)
