"""PutMetricData's members -> points: pure, since it runs in the thread that parses a large body.

Source: Amazon CloudWatch API reference, version 2010-08-01.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zeropull.api.cloudwatch.faults import invalid_combination, invalid_value, missing
from zeropull.api.operations import Call, Members
from zeropull.awsprotocol.members import MemberRules
from zeropull.metricstore.points import Point
from zeropull.metricstore.store import MetricKey

MAX_DATUMS = 1000
MAX_VALUES = 150
MAX_MAGNITUDE = 2.0**360
OLDEST_S = 14 * 86400
NEWEST_S = 2 * 3600
RULES = MemberRules(
    accepted={
        "EntityMetricData.Entity": "metrics are kept without the entity that they belong to",
        "StrictEntityValidation": "metrics are kept without the entity that they belong to",
    }
)


def points_of(call: Call, members: Members) -> Members:
    """`points`: (key, time in s, point, resolution in s) of each datum.

    All are checked before the first is kept: a refused call loses and keeps nothing.
    """
    namespace = members["Namespace"]
    if namespace.startswith("AWS/"):
        raise invalid_value("The value AWS/ for parameter Namespace is invalid.")
    lists = [("MetricData", members.get("MetricData") or [])]
    for number, entity in enumerate(members.get("EntityMetricData") or [], 1):
        path = f"EntityMetricData.member.{number}.MetricData"
        lists.append((path, entity.get("MetricData") or []))
    datums = [
        (f"{path}.member.{number}", datum)
        for path, given in lists
        for number, datum in enumerate(given, 1)
    ]
    if not datums:
        raise missing("The parameter MetricData is required.")
    if len(datums) > MAX_DATUMS:
        raise invalid_value(
            f"The collection MetricData must not have a size greater than {MAX_DATUMS}."
        )
    points = [
        (_key_of(call, namespace, datum), *_datum(call, datum, path)) for path, datum in datums
    ]
    return {"points": points}


def dimensions_of(members: Mapping[str, Any]) -> dict[str, str]:
    return {each["Name"]: each["Value"] for each in members.get("Dimensions") or []}


def _key_of(call: Call, namespace: str, datum: Mapping[str, Any]) -> MetricKey:
    return MetricKey.of(
        call.account,
        namespace,
        datum["MetricName"],
        dimensions_of(datum),
        datum.get("Unit", "None"),
    )


def _datum(call: Call, datum: Mapping[str, Any], path: str) -> tuple[float, Point, int]:
    """When, what and at which resolution."""
    forms = [name for name in ("Value", "Values", "StatisticValues") if datum.get(name) is not None]
    if len(forms) > 1 and forms[0] == "Value":
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
    """Agents send Values for the percentiles beside StatisticValues for everything else."""
    statistics, values = datum.get("StatisticValues"), datum.get("Values")
    counts = datum.get("Counts")
    if values is None and statistics is None:
        values, counts = [datum["Value"]], None
    point = Point() if values is None else _point_of_values(values, counts, path)
    if statistics is None:
        return point
    exact = _point_of_statistics(statistics, path)
    exact.sketch = point.sketch
    return exact


def _point_of_statistics(statistics: Mapping[str, float], path: str) -> Point:
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


def _point_of_values(values: list[float], counts: list[float] | None, path: str) -> Point:
    counts = counts or [1.0] * len(values)
    if len(values) != len(counts):
        raise invalid_value(
            f"The parameters {path}.Values and {path}.Counts must be of the same size."
        )
    if not 0 < len(values) <= MAX_VALUES:
        raise invalid_value(f"The collection {path}.Values must have 1 to {MAX_VALUES} members.")
    point = Point()
    for value, count in zip(values, counts, strict=True):
        _in_range(value, f"{path}.Value")
        if not 0 < count <= MAX_MAGNITUDE:
            raise invalid_value(f"The value {count} for parameter {path}.Counts is invalid.")
        point.add(value, count, with_sketch=True)
    return point


def _in_range(value: float, path: str) -> None:
    if not abs(value) <= MAX_MAGNITUDE:  # NaN is refused too
        raise invalid_value(
            f"The value {value} for parameter {path} is invalid: it must be from -2^360 to 2^360."
        )
