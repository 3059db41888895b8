"""PutMetricData, GetMetricData, GetMetricStatistics, ListMetrics.

Source: Amazon CloudWatch API reference, version 2010-08-01.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from zeropull.api.cloudwatch.faults import invalid_combination, invalid_value, missing
from zeropull.api.listing import page
from zeropull.api.operations import Call, Members, Operation, Output
from zeropull.api.request_rates import PUT_METRIC_DATA
from zeropull.metricstore.alarm_specs import query_from
from zeropull.metricstore.expressions import Series
from zeropull.metricstore.points import PERCENTILE, Point
from zeropull.metricstore.queries import Query, evaluate_queries, periods_of
from zeropull.metricstore.store import MetricKey, MetricStore

MAX_DATUMS = 1000
MAX_VALUES = 150
MAX_MAGNITUDE = 2.0**360
MAX_QUERIES = 500
MAX_DATAPOINTS = 1440
PAGE_OF_METRICS = 500
PAGE_OF_DATAPOINTS = 100_800
OLDEST_S = 14 * 86400
NEWEST_S = 2 * 3600
_ID = re.compile(r"[a-z][a-zA-Z0-9_]*")
_STATISTICS = frozenset({"Sum", "Average", "Minimum", "Maximum", "SampleCount"})
_SHORT_PERIODS = frozenset({1, 5, 10, 20, 30})
_RECENTLY_ACTIVE_S = 3 * 3600


class MetricOperations:
    def __init__(self, metrics: MetricStore) -> None:
        self._metrics = metrics

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation("PutMetricData", self.put, prepare=_prepared, rate=PUT_METRIC_DATA),
            Operation("GetMetricData", self.get_data, has_large_output=True),
            Operation("GetMetricStatistics", self.get_statistics),
            Operation("ListMetrics", self.list),
        )

    def put(self, call: Call, members: Members) -> Output:
        for key, at_s, point, resolution in members["points"]:
            self._metrics.add(key, at_s, point, resolution=resolution)
        self._metrics.flush()
        return None

    def get_data(self, call: Call, members: Members) -> Output:
        start_s, end_s = _range(members)
        raw = members["MetricDataQueries"]
        if len(raw) > MAX_QUERIES:
            raise invalid_value(f"A request has at most {MAX_QUERIES} queries.")
        queries = [query_of(one, f"MetricDataQueries.member.{n}") for n, one in enumerate(raw, 1)]
        results = evaluate_queries(self._metrics, call.account, queries, start_s, end_s)
        periods = periods_of(queries)
        labels = _labels([query for query in queries if query.return_data])
        descending = members.get("ScanBy", "TimestampDescending") != "TimestampAscending"
        rows = [
            (query, start, value)
            for query in queries
            if query.return_data
            for start, value in sorted(
                _clipped(results[query.query_id], periods[query.query_id], start_s, end_s).items(),
                reverse=descending,
            )
        ]
        offset = _offset(members.get("NextToken"), len(rows))
        size = int(members.get("MaxDatapoints", PAGE_OF_DATAPOINTS))
        chosen = rows[offset : offset + size]
        more = offset + size < len(rows)
        answers = [
            {
                "Id": query.query_id,
                "Label": labels[query.query_id],
                "Timestamps": [float(at) for q, at, _ in chosen if q is query],
                "Values": [value for q, _, value in chosen if q is query],
                "StatusCode": "PartialData" if more else "Complete",
            }
            for query in queries
            if query.return_data
        ]
        return {
            "MetricDataResults": answers,
            "NextToken": str(offset + size) if more else None,
            "Messages": [],
        }

    def get_statistics(self, call: Call, members: Members) -> Output:
        start_s, end_s = _range(members)
        period = _period(members["Period"])
        plain = members.get("Statistics") or []
        extended = members.get("ExtendedStatistics") or []
        if bool(plain) == bool(extended):
            raise invalid_combination("Must specify either Statistics or ExtendedStatistics")
        for name in extended:
            check_statistic(name)
        wanted = math.ceil((end_s - start_s) / period)
        if wanted > MAX_DATAPOINTS:
            raise invalid_combination(
                f"You have requested up to {wanted} datapoints, which exceeds the limit of "
                f"{MAX_DATAPOINTS}. You may reduce the datapoints requested by increasing Period, "
                "or decreasing the time range."
            )
        unit = members.get("Unit")
        dimensions = _dimensions(members)
        keys = [
            key
            for key in self._metrics.units_of(
                call.account, members["Namespace"], members["MetricName"], dimensions
            )
            if unit in (None, key.unit)
        ]
        datapoints = [
            _datapoint(start, point, key.unit, plain, extended)
            for key in keys
            for start, point in sorted(self._metrics.read(key, start_s, end_s, period).items())
            if start_s <= start < end_s or start_s < start + period <= end_s
        ]
        return {"Label": members["MetricName"], "Datapoints": datapoints}

    def list(self, call: Call, members: Members) -> Output:
        active_s = _RECENTLY_ACTIVE_S if members.get("RecentlyActive") else OLDEST_S
        keys = self._metrics.keys(
            call.account,
            namespace=members.get("Namespace"),
            name=members.get("MetricName"),
            dimensions=[(d["Name"], d.get("Value")) for d in members.get("Dimensions") or []],
            now_s=call.now_s,
            active_within_s=active_s,
        )
        distinct = {(key.namespace, key.name, key.dimensions): None for key in keys}
        chosen, token = page(
            distinct,
            members,
            lambda each: (each[0], f"{each[1]} {each[2]}"),
            descending=False,
            default_size=PAGE_OF_METRICS,
        )
        metrics = [
            {
                "Namespace": namespace,
                "MetricName": name,
                "Dimensions": [{"Name": key, "Value": value} for key, value in dimensions],
            }
            for namespace, name, dimensions in chosen
        ]
        return {"Metrics": metrics, "NextToken": token, "OwningAccounts": None}


def _prepared(call: Call, members: Members) -> Members:
    """The points of PutMetricData. All are checked before the first is kept: a refused call loses
    and keeps nothing."""
    namespace = members["Namespace"]
    if namespace.startswith("AWS/"):
        raise invalid_value("The value AWS/ for parameter Namespace is invalid.")
    datums = members.get("MetricData") or []
    if not datums:
        raise missing("The parameter MetricData is required.")
    if len(datums) > MAX_DATUMS:
        raise invalid_value(
            f"The collection MetricData must not have a size greater than {MAX_DATUMS}."
        )
    points = [
        (_key_of(call, namespace, datum), *_datum(call, datum, f"MetricData.member.{number}"))
        for number, datum in enumerate(datums, 1)
    ]
    return {"points": points}


def query_of(raw: Mapping[str, Any], path: str) -> Query:
    """A MetricDataQuery.

    Raises:
        ApiFault: names the member by `path`.
    """
    name = raw["Id"]
    if not _ID.fullmatch(name):
        raise invalid_value(
            f"The value {name} for parameter {path}.Id is not matching the expected pattern "
            f"^{_ID.pattern}$."
        )
    stat, expression = raw.get("MetricStat"), raw.get("Expression")
    if (stat is None) == (expression is None):
        raise invalid_combination(
            f"The parameters {path}.MetricStat and {path}.Expression are mutually exclusive, and "
            "exactly one of them is required."
        )
    if raw.get("Period") is not None:
        _period(raw["Period"])
    if stat is not None:
        for member in ("Namespace", "MetricName"):
            if not stat["Metric"].get(member):
                raise missing(f"The parameter {path}.MetricStat.Metric.{member} is required.")
        check_statistic(stat["Stat"])
        _period(stat.get("Period", 60))
    return query_from(raw)


def check_statistic(name: str) -> None:
    """Raises ApiFault for trimmed means and everything else that is not kept here."""
    if name not in _STATISTICS and not PERCENTILE.fullmatch(name):
        raise invalid_value(
            f"The value {name} for parameter Stat is not supported: Sum, Average, Minimum, "
            "Maximum, SampleCount or a percentile such as p99.9."
        )


def _key_of(call: Call, namespace: str, datum: Mapping[str, Any]) -> MetricKey:
    return MetricKey.of(
        call.account, namespace, datum["MetricName"], _dimensions(datum), datum.get("Unit", "None")
    )


def _datum(call: Call, datum: Mapping[str, Any], path: str) -> tuple[float, Point, int]:
    """When, what and at which resolution."""
    forms = [name for name in ("Value", "Values", "StatisticValues") if datum.get(name) is not None]
    if len(forms) > 1:
        raise invalid_combination(
            f"The parameters {path}.{forms[0]} and {path}.{forms[1]} are mutually exclusive and "
            "you have specified both."
        )
    if not forms:
        raise missing(f"The parameter {path}.Value is required.")
    at_s = float(datum.get("Timestamp", call.now_s))
    if not call.now_s - OLDEST_S <= at_s <= call.now_s + NEWEST_S:
        raise invalid_value(
            f"The parameter {path}.Timestamp must specify a time within the past two weeks and no "
            "more than two hours into the future."
        )
    resolution = int(datum.get("StorageResolution", 60))
    if resolution not in (1, 60):
        raise invalid_value(
            f"The value {resolution} for parameter {path}.StorageResolution is not 1 or 60."
        )
    return at_s, _point_of(datum, path), resolution


def _point_of(datum: Mapping[str, Any], path: str) -> Point:
    point = Point()
    if (statistics := datum.get("StatisticValues")) is not None:
        names = ("SampleCount", "Sum", "Minimum", "Maximum")
        count, total, least, most = (statistics[name] for name in names)
        for name in names:
            _in_range(statistics[name], f"{path}.StatisticValues.{name}")
        if count <= 0 or least > most:
            raise invalid_value(
                f"The parameter {path}.StatisticValues must have a SampleCount above 0 and a "
                f"Minimum that is not above its Maximum, not {count:g} samples from {least:g} to "
                f"{most:g}."
            )
        return Point(count, total, least, most)
    values = datum.get("Values")
    if values is None:
        values, counts = [datum["Value"]], [1.0]
    else:
        counts = datum.get("Counts") or [1.0] * len(values)
    if len(values) != len(counts):
        raise invalid_value(
            f"The parameters {path}.Values and {path}.Counts must be of the same size."
        )
    if not 0 < len(values) <= MAX_VALUES:
        raise invalid_value(f"The collection {path}.Values must have 1 to {MAX_VALUES} members.")
    for value, count in zip(values, counts, strict=True):
        _in_range(value, f"{path}.Value")
        if not 0 < count <= MAX_MAGNITUDE:
            raise invalid_value(f"The value {count} for parameter {path}.Counts is invalid.")
        point.add(value, count, with_sketch=True)
    return point


def _in_range(value: float, path: str) -> None:
    if not abs(value) <= MAX_MAGNITUDE:  # NaN is not either
        raise invalid_value(
            f"The value {value} for parameter {path} is invalid: it must be from -2^360 to 2^360."
        )


def _dimensions(members: Mapping[str, Any]) -> dict[str, str]:
    return {each["Name"]: each["Value"] for each in members.get("Dimensions") or []}


def _range(members: Mapping[str, Any]) -> tuple[float, float]:
    start_s, end_s = float(members["StartTime"]), float(members["EndTime"])
    if start_s >= end_s:
        raise invalid_value("The parameter StartTime must be less than the parameter EndTime.")
    return start_s, end_s


def _period(value: int) -> int:
    if value in _SHORT_PERIODS or (value > 0 and value % 60 == 0):
        return int(value)
    raise invalid_value(
        f"The value {value} for parameter Period is invalid: 1, 5, 10, 20, 30 or a multiple of 60."
    )


def _clipped(series: Series, period: int, start_s: float, end_s: float) -> Series:
    """Whole periods from that which holds the start, exclusive of the end."""
    low = int(start_s // period) * period
    return {start: value for start, value in series.items() if low <= start < end_s}


def _labels(queries: Sequence[Query]) -> dict[str, str]:
    """The metric's name, with what tells queries of the same metric apart."""
    stats = [query.stat for query in queries if query.stat is not None]
    labels: dict[str, str] = {}
    for query in queries:
        if query.label:
            labels[query.query_id] = query.label
            continue
        if query.stat is None:
            labels[query.query_id] = query.query_id
            continue
        same = [
            s for s in stats if (s.namespace, s.name) == (query.stat.namespace, query.stat.name)
        ]
        parts = [query.stat.name]
        if len({tuple(sorted(s.dimensions.items())) for s in same}) > 1:
            parts += list(query.stat.dimensions.values())
        if len({s.statistic for s in same}) > 1:
            parts.append(query.stat.statistic)
        if len({s.period_s for s in same}) > 1:
            parts.append(str(query.stat.period_s))
        labels[query.query_id] = " ".join(parts)
    return labels


def _offset(token: str | None, total: int) -> int:
    if token is None:
        return 0
    if not token.isdigit() or int(token) > total:
        raise invalid_value("The value of NextToken is not one that a previous page returned.")
    return int(token)


def _datapoint(
    start: int, point: Point, unit: str, plain: Sequence[str], extended: Sequence[str]
) -> dict[str, Any]:
    values = {name: point.statistic(name) for name in plain}
    percentiles = {name: point.statistic(name) for name in extended}
    found = {name: value for name, value in percentiles.items() if value is not None}
    return {
        "Timestamp": float(start),
        "Unit": unit,
        **values,
        "ExtendedStatistics": found or None,
    }
