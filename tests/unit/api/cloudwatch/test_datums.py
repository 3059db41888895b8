"""PutMetricData's members become points, or nothing is kept."""

from __future__ import annotations

from typing import Any

import pytest

from zeropull.api.cloudwatch.datums import points_of
from zeropull.api.operations import Call
from zeropull.awsprotocol.faults import ApiFault

NOW_S = 1_790_000_000.0
CALL = Call("0" * 12, "us-east-1", "PutMetricData", "r", NOW_S)
STATISTICS = {"SampleCount": 3.0, "Sum": 6.0, "Minimum": 1.0, "Maximum": 3.0}


def points(*datums: dict[str, Any]) -> list[Any]:
    given = [{"MetricName": "m"} | datum for datum in datums]
    return list(points_of(CALL, {"Namespace": "ns", "MetricData": given})["points"])


def test_a_value_is_one_sample_now() -> None:
    ((key, at_s, point, resolution),) = points({"Value": 2.0, "Unit": "Count"})
    assert (key.name, key.unit, at_s, resolution) == ("m", "Count", NOW_S, 60)
    assert (point.count, point.total) == (1.0, 2.0)


def test_values_have_counts_and_statistics_beside_them_win() -> None:
    ((_, _, point, _),) = points({"Values": [1.0, 4.0], "Counts": [3.0, 1.0]})
    assert (point.count, point.total, point.least, point.most) == (4.0, 7.0, 1.0, 4.0)
    ((_, _, point, _),) = points({"Values": [1.0, 4.0], "StatisticValues": STATISTICS})
    assert (point.count, point.total, point.least, point.most) == (3.0, 6.0, 1.0, 3.0)
    assert point.statistic("p50") == pytest.approx(1.0, rel=0.02)
    ((_, _, point, _),) = points({"StatisticValues": STATISTICS})
    assert point.statistic("p50") is None


@pytest.mark.parametrize(
    ("datum", "text"),
    [
        ({}, "MetricData.member.2.Value is required"),
        ({"Value": 1.0, "Values": [1.0]}, "mutually exclusive"),
        ({"Value": 1.0, "StatisticValues": STATISTICS}, "mutually exclusive"),
        ({"Values": [1.0], "Counts": [1.0, 2.0]}, "same size"),
        ({"Values": []}, "1 to 150"),
        ({"Values": [1.0], "Counts": [0.0]}, "Counts is invalid"),
        ({"Value": float("nan")}, "from -2"),
        ({"Value": float("inf")}, "from -2"),
        ({"StatisticValues": STATISTICS | {"SampleCount": 0.0}}, "SampleCount above 0"),
        ({"StatisticValues": STATISTICS | {"Minimum": 9.0}}, "not above its Maximum"),
        ({"Value": 1.0, "Timestamp": NOW_S - 15 * 86400}, "past two weeks"),
        ({"Value": 1.0, "StorageResolution": 5}, "not 1 or 60"),
    ],
)
def test_one_wrong_datum_refuses_all(datum: dict[str, Any], text: str) -> None:
    with pytest.raises(ApiFault, match=text):
        points({"Value": 1.0}, datum)


def test_datums_of_entities_count_too() -> None:
    entity = {"Entity": {}, "MetricData": [{"MetricName": "e", "Value": 1.0}]}
    made = points_of(CALL, {"Namespace": "ns", "EntityMetricData": [entity]})
    assert [key.name for key, *_ in made["points"]] == ["e"]
    many = {"MetricData": [{"MetricName": "e", "Value": 1.0}] * 1000}
    with pytest.raises(ApiFault, match="size greater than 1000"):
        points_of(CALL, {"Namespace": "ns", "EntityMetricData": [many, entity]})
    with pytest.raises(ApiFault, match="AWS/"):
        points_of(CALL, {"Namespace": "AWS/SageMaker", "EntityMetricData": [entity]})
