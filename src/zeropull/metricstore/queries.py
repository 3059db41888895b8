"""Queries over the store: statistics of metrics, and expressions over other queries' results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from zeropull.errors import InvalidInput
from zeropull.metricstore.expressions import Series, evaluate_expression, names_in
from zeropull.metricstore.points import Point
from zeropull.metricstore.store import MetricKey, MetricStore

DEFAULT_PERIOD_S = 60


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


def series_of(
    store: MetricStore, account: str, stat: MetricStat, start_s: float, end_s: float
) -> Series:
    """Values by period start; periods without data, or without that statistic, are absent."""
    points: dict[int, Point] = {}
    for key in _keys(store, account, stat):
        for start, point in store.read(key, start_s, end_s, stat.period_s).items():
            points.setdefault(start, Point()).merge(point)
    values = {start: point.statistic(stat.statistic) for start, point in sorted(points.items())}
    return {start: value for start, value in values.items() if value is not None}


def evaluate_queries(
    store: MetricStore, account: str, queries: Sequence[Query], start_s: float, end_s: float
) -> dict[str, Series]:
    """The series of every query by id.

    Raises:
        InvalidInput: an id given twice, an unknown id, expressions that need each other.
    """
    by_id = {query.query_id: query for query in queries}
    if len(by_id) < len(queries):
        raise InvalidInput("The values of the Id fields of the queries must be unique.")
    results: dict[str, Series] = {}
    for query in queries:
        _evaluate(store, account, query, by_id, results, (), start_s, end_s)
    return {query.query_id: results[query.query_id] for query in queries}


def period_of(query: Query, by_id: Mapping[str, Query], above: tuple[str, ...] = ()) -> int:
    """The query's own period, or the longest of those that its expression needs."""
    if query.stat is not None:
        return query.stat.period_s
    if query.period_s is not None:
        return query.period_s
    needed = _needed(query, by_id)
    path = (*above, query.query_id)
    return max(
        (period_of(by_id[name], by_id, path) for name in needed if name not in path),
        default=DEFAULT_PERIOD_S,
    )


def _evaluate(
    store: MetricStore,
    account: str,
    query: Query,
    by_id: Mapping[str, Query],
    results: dict[str, Series],
    above: tuple[str, ...],
    start_s: float,
    end_s: float,
) -> None:
    if query.query_id in results:
        return
    if query.query_id in above:
        raise InvalidInput(f"The expression of {query.query_id!r} needs its own result.")
    if query.stat is not None:
        results[query.query_id] = series_of(store, account, query.stat, start_s, end_s)
        return
    assert query.expression is not None
    needed = _needed(query, by_id)
    for name in needed:
        _evaluate(
            store, account, by_id[name], by_id, results, (*above, query.query_id), start_s, end_s
        )
    period = period_of(query, by_id)
    low, high = int(start_s // period) * period, int(-(-end_s // period)) * period
    results[query.query_id] = evaluate_expression(
        query.expression,
        {name: results[name] for name in needed},
        timestamps=range(low, high, period),
    )


def _needed(query: Query, by_id: Mapping[str, Query]) -> list[str]:
    assert query.expression is not None
    names = names_in(query.expression)
    if "METRICS" in query.expression:
        names |= {name for name, other in by_id.items() if other.stat is not None}
    unknown = sorted(names - by_id.keys())
    if unknown:
        raise InvalidInput(
            f"The expression {query.expression!r} has the unknown id {unknown[0]!r}."
        )
    return sorted(names)


def _keys(store: MetricStore, account: str, stat: MetricStat) -> list[MetricKey]:
    if stat.unit is not None:
        dimensions = dict(stat.dimensions)
        return [MetricKey.of(account, stat.namespace, stat.name, dimensions, stat.unit)]
    return store.units_of(account, stat.namespace, stat.name, stat.dimensions)
