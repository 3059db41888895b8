"""PutMetricData, GetMetricData, GetMetricStatistics, ListMetrics.

Source: Amazon CloudWatch API reference, version 2010-08-01.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from zeropull.api.cloudwatch import datums
from zeropull.api.cloudwatch.datums import dimensions_of
from zeropull.api.cloudwatch.faults import invalid_combination, invalid_value
from zeropull.api.cloudwatch.queries import check_period, check_statistic, query_of
from zeropull.api.listing import page
from zeropull.api.operations import Call, Members, Operation, Output
from zeropull.api.request_rates import PUT_METRIC_DATA
from zeropull.awsprotocol.faults import ApiFault
from zeropull.awsprotocol.members import MemberRules
from zeropull.errors import InvalidInput
from zeropull.metricstore.expressions import Series
from zeropull.metricstore.points import Point
from zeropull.metricstore.queries import Query, evaluate_queries, periods_of, points_of
from zeropull.metricstore.store import MetricStore

MAX_QUERIES = 500
MAX_DATAPOINTS = 1440
PAGE_OF_METRICS = 500
PAGE_OF_DATAPOINTS = 100_800
_RECENTLY_ACTIVE_S = 3 * 3600
_WRONG_PAGE = "InvalidParameterValueException"
_GET_RULES = MemberRules(accepted={"LabelOptions": "labels have no dynamic parts here"})
_LIST_RULES = MemberRules(accepted={"IncludeLinkedAccounts": "there are no linked accounts"})


class MetricOperations:
    def __init__(self, metrics: MetricStore) -> None:
        self._metrics = metrics

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "PutMetricData",
                self.put,
                datums.RULES,
                prepare=datums.points_of,
                rate=PUT_METRIC_DATA,
                runs_in_thread=True,
            ),
            Operation(
                "GetMetricData",
                self.get_data,
                _GET_RULES,
                has_large_output=True,
                runs_in_thread=True,
            ),
            Operation("GetMetricStatistics", self.get_statistics, runs_in_thread=True),
            Operation("ListMetrics", self.list, _LIST_RULES, runs_in_thread=True),
        )

    def put(self, call: Call, members: Members) -> Output:
        """Keep the points that `datums.points_of` has made of the members."""
        self._metrics.add_all(members["points"])
        return None

    def get_data(self, call: Call, members: Members) -> Output:
        start_s, end_s = _range(members)
        raw = members["MetricDataQueries"]
        if len(raw) > MAX_QUERIES:
            raise InvalidInput(
                f"The collection MetricDataQueries must not have a size greater than {MAX_QUERIES}."
            )
        queries = [
            query_of(one, f"MetricDataQueries.member.{number}", call.account)
            for number, one in enumerate(raw, 1)
        ]
        results = evaluate_queries(self._metrics, call.account, queries, start_s, end_s)
        periods = periods_of(queries)
        shown = [query for query in queries if query.return_data]
        clipped = {
            query.query_id: _clipped(
                results[query.query_id], periods[query.query_id], start_s, end_s
            )
            for query in shown
        }
        total = sum(len(series) for series in clipped.values())
        offset = _offset(members.get("NextToken"), total)
        size = int(members.get("MaxDatapoints", PAGE_OF_DATAPOINTS))
        if size < 1:
            raise InvalidInput(f"The value {size} for parameter MaxDatapoints is below 1.")
        end = offset + size
        more = end < total
        descending = members.get("ScanBy", "TimestampDescending") != "TimestampAscending"
        labels = _labels(shown)
        answers = []
        begin = 0  # of this query among all datapoints
        for query in shown:
            series = clipped[query.query_id]
            page_of = slice(max(0, offset - begin), max(0, end - begin))
            begin += len(series)
            times = sorted(series, reverse=descending)[page_of]
            answers.append(
                {
                    "Id": query.query_id,
                    "Label": labels[query.query_id],
                    "Timestamps": [float(at) for at in times],
                    "Values": [series[at] for at in times],
                    "StatusCode": "PartialData" if more else "Complete",
                }
            )
        return {
            "MetricDataResults": answers,
            "NextToken": str(end) if more else None,
            "Messages": [],
        }

    def get_statistics(self, call: Call, members: Members) -> Output:
        start_s, end_s = float(members["StartTime"]), float(members["EndTime"])
        if start_s >= end_s:
            raise invalid_value("The parameter StartTime must be less than the parameter EndTime.")
        plain = members.get("Statistics") or []
        extended = members.get("ExtendedStatistics") or []
        if bool(plain) == bool(extended):
            raise invalid_combination("Must specify either Statistics or ExtendedStatistics")
        try:
            period = check_period(members["Period"])
            for name in extended:
                check_statistic(name)
        except InvalidInput as error:
            raise invalid_value(error.reason) from error
        wanted = math.ceil((end_s - start_s) / period)
        if wanted > MAX_DATAPOINTS:
            raise invalid_combination(
                f"You have requested up to {wanted} datapoints, which exceeds the limit of "
                f"{MAX_DATAPOINTS}. You may reduce the datapoints requested by increasing Period, "
                "or decreasing the time range."
            )
        unit = members.get("Unit")
        dimensions = dimensions_of(members)
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
            for start, point in sorted(
                points_of(self._metrics, key, start_s, end_s, period).items()
            )
            if start_s <= start < end_s or start_s < start + period <= end_s
        ]
        return {"Label": members["MetricName"], "Datapoints": datapoints}

    def list(self, call: Call, members: Members) -> Output:
        if members.get("OwningAccount") not in (None, call.account):
            return {"Metrics": [], "OwningAccounts": None}
        active_s = _RECENTLY_ACTIVE_S if members.get("RecentlyActive") else datums.OLDEST_S
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
            token_fault=_WRONG_PAGE,
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


def _range(members: Mapping[str, Any]) -> tuple[float, float]:
    """Of GetMetricData, which has texts and a code of its own."""
    start_s, end_s = float(members["StartTime"]), float(members["EndTime"])
    if start_s > end_s:
        raise InvalidInput("The parameter EndTime must be greater than StartTime.")
    if start_s == end_s:
        raise InvalidInput("The parameter StartTime must not equal parameter EndTime.")
    return start_s, end_s


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
    if not (token.isascii() and token.isdigit() and len(token) < 10 and int(token) <= total):
        raise ApiFault(
            "InvalidNextToken",
            "The NextToken is not valid for this request: use the one that the previous page "
            "returned, with the same queries.",
        )
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
