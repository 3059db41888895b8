"""CloudWatch with unmodified boto3 and, for old clients, with the query protocol."""

from __future__ import annotations

import dataclasses
import json
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from tests.fixtures.aws_api import ACCOUNT, INSTANCE_TYPES, REGION, Served, serving
from zeropull.api import create_api_app
from zeropull.api.cloudwatch import cloudwatch_table
from zeropull.api.keys import ensure_default_key
from zeropull.controlapi.messages import CopyReading
from zeropull.metricstore.store import MetricStore
from zeropull.scaling.metrics import publish_readings
from zeropull.statestore import Store

NOW = datetime.now(UTC).replace(second=0, microsecond=0)


@pytest.fixture
def metrics(tmp_path: Path) -> Iterator[MetricStore]:
    made = MetricStore(tmp_path / "metrics.db")
    yield made
    made.close()


@pytest.fixture
def served(tmp_path: Path, metrics: MetricStore) -> Iterator[Served]:
    with Store.open(tmp_path / "zeropull.db") as store:
        key, _ = ensure_default_key(store, ACCOUNT, time.time())
        app = create_api_app(
            store,
            region=REGION,
            instance_types=INSTANCE_TYPES,
            tables=[cloudwatch_table(store, metrics)],
        )
        with serving(app) as url:
            yield Served(url, store, key, time.time)


@pytest.fixture
def cloudwatch(served: Served) -> Any:
    return served.client("cloudwatch")


def put(cloudwatch: Any, name: str, *values: float, minutes_ago: int = 10, **more: Any) -> None:
    cloudwatch.put_metric_data(
        Namespace="test",
        MetricData=[
            {
                "MetricName": name,
                "Timestamp": NOW - timedelta(minutes=minutes_ago - index),
                "Value": value,
                **more,
            }
            for index, value in enumerate(values)
        ],
    )


def stat(query_id: str, name: str, statistic: str = "Sum") -> dict[str, Any]:
    metric = {"Namespace": "test", "MetricName": name}
    return {"Id": query_id, "MetricStat": {"Metric": metric, "Period": 60, "Stat": statistic}}


def test_data_comes_back_newest_first_and_through_math(cloudwatch: Any) -> None:
    put(cloudwatch, "a", 1, 2, 3)
    put(cloudwatch, "b", 10, 20)
    answer = cloudwatch.get_metric_data(
        StartTime=NOW - timedelta(minutes=15),
        EndTime=NOW,
        MetricDataQueries=[
            stat("a", "a"),
            {**stat("b", "b"), "ReturnData": False},
            {"Id": "e", "Expression": "a + b", "Label": "both"},
            stat("none", "nothing"),
        ],
    )
    results = {result["Id"]: result for result in answer["MetricDataResults"]}
    assert results["a"]["Values"] == [3, 2, 1]
    assert results["a"]["Timestamps"][0] == NOW - timedelta(minutes=8)
    assert (results["e"]["Label"], results["e"]["Values"]) == ("both", [3, 22, 11])
    assert (results["none"]["Values"], results["none"]["StatusCode"]) == ([], "Complete")
    assert "b" not in results


def test_pages_hold_at_most_the_datapoints_asked_for(cloudwatch: Any) -> None:
    put(cloudwatch, "a", *range(9))
    pages = cloudwatch.get_paginator("get_metric_data").paginate(
        StartTime=NOW - timedelta(minutes=15),
        EndTime=NOW,
        MetricDataQueries=[stat("a", "a")],
        MaxDatapoints=4,
    )
    values = [page["MetricDataResults"][0]["Values"] for page in pages]
    assert values == [[8, 7, 6, 5], [4, 3, 2, 1], [0]]


def test_pages_go_through_several_queries_in_either_direction(cloudwatch: Any) -> None:
    put(cloudwatch, "a", 1, 2, 3)
    put(cloudwatch, "b", 10, 20)
    asked = {
        "StartTime": NOW - timedelta(minutes=15),
        "EndTime": NOW,
        "MetricDataQueries": [stat("a", "a"), stat("b", "b")],
        "MaxDatapoints": 4,
        "ScanBy": "TimestampAscending",
    }
    first = cloudwatch.get_metric_data(**asked)
    assert [each["Values"] for each in first["MetricDataResults"]] == [[1, 2, 3], [10]]
    assert {each["StatusCode"] for each in first["MetricDataResults"]} == {"PartialData"}
    second = cloudwatch.get_metric_data(**asked, NextToken=first["NextToken"])
    assert [each["Values"] for each in second["MetricDataResults"]] == [[], [20]]
    assert {each["StatusCode"] for each in second["MetricDataResults"]} == {"Complete"}
    assert "NextToken" not in second
    with pytest.raises(ClientError, match="NextToken"):
        cloudwatch.get_metric_data(**asked, NextToken="never given")


@pytest.mark.parametrize(
    ("queries", "text"),
    [
        ([stat("a", "a"), stat("a", "b")], "values for parameter id in MetricDataQueries are not"),
        ([{"Id": "e", "Expression": "m1 + 1"}], "Error in expression 'e'"),
        ([{"Id": "e", "Expression": "e"}], "Error in expression 'e'"),
        ([stat("a", "a"), {"Id": "e", "Expression": "SUM(a"}], "Error in expression 'e'"),
        ([stat("a", "a"), {"Id": "e", "Expression": "STDEV(a)"}], "unknown function 'STDEV'"),
        ([{"Id": "e", "Expression": "1 + " * 600 + "1"}], "length less than or equal to 2048"),
    ],
)
def test_math_that_cannot_be_evaluated_is_a_validation_error(
    cloudwatch: Any, queries: list[dict[str, Any]], text: str
) -> None:
    for call, arguments in (
        (
            cloudwatch.get_metric_data,
            {
                "StartTime": NOW - timedelta(minutes=15),
                "EndTime": NOW,
                "MetricDataQueries": queries,
            },
        ),
        (
            cloudwatch.put_metric_alarm,
            {
                "AlarmName": "math",
                "EvaluationPeriods": 1,
                "Threshold": 1.0,
                "ComparisonOperator": "GreaterThanThreshold",
                "Metrics": [{"ReturnData": query["Id"] == "e", **query} for query in queries],
            },
        ),
    ):
        with pytest.raises(ClientError, match=text) as raised:
            call(**arguments)
        assert raised.value.response["Error"]["Code"] == "ValidationError"


@pytest.mark.parametrize(
    ("metric_stat", "text"),
    [
        ({"Period": 15}, "The value 15 for parameter Period is invalid"),
        ({"Period": 90}, "The value 90 for parameter Period is invalid"),
        ({"Stat": "tm90"}, "The value tm90 for parameter Stat is not supported"),
        ({"Stat": "p101"}, "The value p101 for parameter Stat is not supported"),
    ],
)
def test_periods_and_statistics_that_are_not_kept_are_refused(
    cloudwatch: Any, metric_stat: dict[str, Any], text: str
) -> None:
    query = stat("a", "a")
    query["MetricStat"] |= metric_stat
    with pytest.raises(ClientError, match=text) as raised:
        cloudwatch.get_metric_data(
            StartTime=NOW - timedelta(minutes=15), EndTime=NOW, MetricDataQueries=[query]
        )
    assert raised.value.response["Error"]["Code"] == "ValidationError"


def test_only_the_metric_with_exactly_those_dimensions_is_read(cloudwatch: Any) -> None:
    one, other = ({"Name": name, "Value": "x"} for name in ("Endpoint", "Variant"))
    put(cloudwatch, "a", 1, Dimensions=[one, other])
    put(cloudwatch, "a", 2, Dimensions=[one])

    def found(*dimensions: dict[str, str]) -> list[float]:
        query = stat("a", "a")
        query["MetricStat"]["Metric"]["Dimensions"] = list(dimensions)
        answer = cloudwatch.get_metric_data(
            StartTime=NOW - timedelta(minutes=15), EndTime=NOW, MetricDataQueries=[query]
        )
        return list(answer["MetricDataResults"][0]["Values"])

    assert (found(other, one), found(one), found(other), found()) == ([1], [2], [], [])


def test_statistics_have_percentiles_and_units(cloudwatch: Any) -> None:
    cloudwatch.put_metric_data(
        Namespace="test",
        MetricData=[
            {
                "MetricName": "latency",
                "Timestamp": NOW - timedelta(minutes=5),
                "Values": [float(n) for n in range(1, 101)],
                "Unit": "Microseconds",
            }
        ],
    )
    asked = {
        "Namespace": "test",
        "MetricName": "latency",
        "StartTime": NOW - timedelta(hours=1),
        "EndTime": NOW,
        "Period": 60,
    }
    point = cloudwatch.get_metric_statistics(**asked, ExtendedStatistics=["p90"])["Datapoints"][0]
    assert point["ExtendedStatistics"]["p90"] == pytest.approx(90, rel=0.02)
    point = cloudwatch.get_metric_statistics(**asked, Statistics=["Average"])["Datapoints"][0]
    assert (point["Average"], point["Unit"]) == (50.5, "Microseconds")
    with pytest.raises(ClientError, match="Must specify either Statistics") as raised:
        cloudwatch.get_metric_statistics(**asked)
    assert raised.value.response["Error"]["Code"] == "InvalidParameterCombination"
    with pytest.raises(ClientError, match="exceeds the limit of 1440"):
        cloudwatch.get_metric_statistics(
            **{**asked, "StartTime": NOW - timedelta(days=2)}, Statistics=["Sum"]
        )


def test_a_refused_datum_keeps_none_of_the_call(cloudwatch: Any) -> None:
    good = {"MetricName": "a", "Value": 1.0}
    bad = {"MetricName": "a", "Values": [1.0], "Counts": [1.0, 2.0]}
    with pytest.raises(ClientError, match=r"MetricData.member.2.Values and .* the same size"):
        cloudwatch.put_metric_data(Namespace="test", MetricData=[good, bad])
    assert cloudwatch.list_metrics(Namespace="test")["Metrics"] == []
    with pytest.raises(ClientError, match="mutually exclusive") as raised:
        cloudwatch.put_metric_data(Namespace="test", MetricData=[{**bad, "Value": 1.0}])
    assert raised.value.response["Error"]["Code"] == "InvalidParameterCombination"


def statistics(count: float, total: float, least: float, most: float) -> dict[str, Any]:
    return {
        "StatisticValues": {"SampleCount": count, "Sum": total, "Minimum": least, "Maximum": most}
    }


def test_statistic_sets_and_counted_values_add_up(cloudwatch: Any) -> None:
    at = NOW - timedelta(minutes=5)
    data = [
        {"MetricName": "a", "Timestamp": at, **statistics(4, 20, 2, 9)},
        {"MetricName": "a", "Timestamp": at, "Values": [1.0, 3.0], "Counts": [5.0, 1.0]},
    ]
    cloudwatch.put_metric_data(Namespace="test", MetricData=data)
    point = cloudwatch.get_metric_statistics(
        Namespace="test", MetricName="a", StartTime=at, EndTime=NOW, Period=60,
        Statistics=["SampleCount", "Sum", "Minimum", "Maximum", "Average"],
    )["Datapoints"][0]  # fmt: skip
    assert (point["SampleCount"], point["Sum"], point["Average"]) == (10, 28, 2.8)
    assert (point["Minimum"], point["Maximum"]) == (1, 9)


@pytest.mark.parametrize(
    ("datum", "text"),
    [
        ({"Value": float("nan")}, "The value nan for parameter MetricData.member.1.Value is inval"),
        ({"Value": float("-inf")}, "The value -inf for parameter MetricData.member.1.Value"),
        ({"Value": 2.0**361}, "from -2.360 to 2.360"),
        ({"Values": [1.0], "Counts": [0.0]}, "for parameter MetricData.member.1.Counts is invalid"),
        ({"Values": [1.0] * 151}, "must have 1 to 150 members"),
        (statistics(0, 0, 0, 0), "a SampleCount above 0"),
        (statistics(-2, 0, 0, 0), "a SampleCount above 0"),
        (statistics(2, 4, 3, 1), "a Minimum that is not above its Maximum"),
        ({}, "The parameter MetricData.member.1.Value is required"),
        ({"Value": 1.0, "StorageResolution": 10}, "is not 1 or 60"),
        ({"Value": 1.0, "Timestamp": NOW - timedelta(days=15)}, "within the past two weeks"),
        ({"Value": 1.0, "Timestamp": NOW + timedelta(hours=3)}, "two hours into the future"),
    ],
)
def test_data_that_no_statistic_can_be_made_of_are_refused(
    cloudwatch: Any, datum: dict[str, Any], text: str
) -> None:
    with pytest.raises(ClientError, match=text):
        cloudwatch.put_metric_data(Namespace="test", MetricData=[{"MetricName": "a", **datum}])
    assert cloudwatch.list_metrics(Namespace="test")["Metrics"] == []


def test_metrics_are_listed_by_their_dimensions(cloudwatch: Any) -> None:
    put(cloudwatch, "a", 1, Dimensions=[{"Name": "EndpointName", "Value": "e"}])
    put(cloudwatch, "b", 1)
    listed = cloudwatch.list_metrics(Dimensions=[{"Name": "EndpointName"}])["Metrics"]
    assert [metric["MetricName"] for metric in listed] == ["a"]


def test_high_resolution_data_can_be_read_by_the_second(cloudwatch: Any) -> None:
    start = NOW - timedelta(minutes=5)
    data = [
        {
            "MetricName": "fine",
            "Timestamp": start + timedelta(seconds=second),
            "Value": float(second),
            "StorageResolution": 1,
        }
        for second in range(20)
    ]
    cloudwatch.put_metric_data(Namespace="test", MetricData=data)
    put(cloudwatch, "coarse", 1.0, minutes_ago=5)

    def maxima(name: str, period: int) -> list[float]:
        answer = cloudwatch.get_metric_data(
            StartTime=start,
            EndTime=start + timedelta(seconds=20),
            ScanBy="TimestampAscending",
            MetricDataQueries=[
                {
                    "Id": "q",
                    "MetricStat": {
                        "Metric": {"Namespace": "test", "MetricName": name},
                        "Period": period,
                        "Stat": "Maximum",
                    },
                }
            ],
        )
        return list(answer["MetricDataResults"][0]["Values"])

    assert maxima("fine", 1) == [float(second) for second in range(20)]
    assert maxima("fine", 10) == [9.0, 19.0]
    assert maxima("fine", 60) == [19.0]
    assert maxima("coarse", 10) == [1.0]  # it was kept by the minute, and stands at its start


def test_the_metrics_of_an_endpoint_can_be_read(cloudwatch: Any, metrics: MetricStore) -> None:
    second = int((NOW - timedelta(minutes=5)).timestamp())
    members: dict[str, Any] = {
        "account": ACCOUNT, "endpoint": "ep", "variant": "v1", "instance_id": "i",
        "component": None, "in_flight_min": 1, "in_flight_integral": 3.0,
    }  # fmt: skip
    publish_readings(
        metrics,
        [
            CopyReading(
                copy_id="c", second=second + each, in_flight_max=4 + each // 10, invocations=2,
                model_latency_us=(1000, 9000), **members,
            )
            for each in range(20)
        ],
    )  # fmt: skip
    dimensions = [
        {"Name": "EndpointName", "Value": "ep"},
        {"Name": "VariantName", "Value": "v1"},
    ]

    def query(query_id: str, name: str, statistic: str, period: int) -> dict[str, Any]:
        metric = {"Namespace": "AWS/SageMaker", "MetricName": name, "Dimensions": dimensions}
        return {
            "Id": query_id,
            "MetricStat": {"Metric": metric, "Period": period, "Stat": statistic},
        }

    answer = cloudwatch.get_metric_data(
        StartTime=NOW - timedelta(minutes=5),
        EndTime=NOW - timedelta(minutes=4),
        ScanBy="TimestampAscending",
        MetricDataQueries=[
            query("most", "ConcurrentRequestsPerModel", "Maximum", 10),
            query("least", "ConcurrentRequestsPerModel", "Minimum", 10),
            query("calls", "Invocations", "Sum", 60),
            query("slow", "ModelLatency", "p99", 60),
        ],
    )
    found = {each["Id"]: each["Values"] for each in answer["MetricDataResults"]}
    assert (found["most"], found["least"], found["calls"]) == ([4.0, 5.0], [1.0, 1.0], [40.0])
    assert found["slow"] == [pytest.approx(9000, rel=0.01)]


def alarm(**more: Any) -> dict[str, Any]:
    return {
        "AlarmName": "high",
        "Namespace": "test",
        "MetricName": "a",
        "Statistic": "Sum",
        "Period": 60,
        "EvaluationPeriods": 3,
        "Threshold": 5.0,
        "ComparisonOperator": "GreaterThanThreshold",
        **more,
    }


def test_an_alarm_lives_its_life(cloudwatch: Any) -> None:
    cloudwatch.put_metric_alarm(**alarm())
    found = cloudwatch.describe_alarms()["MetricAlarms"][0]
    assert found["StateValue"] == "INSUFFICIENT_DATA"
    assert found["StateReason"] == "Unchecked: Initial alarm creation"
    assert found["AlarmArn"] == f"arn:aws:cloudwatch:{REGION}:{ACCOUNT}:alarm:high"
    assert found["AlarmActions"] == []
    cloudwatch.set_alarm_state(AlarmName="high", StateValue="ALARM", StateReason="a test")
    cloudwatch.put_metric_alarm(**alarm(Threshold=6.0))
    found = cloudwatch.describe_alarms(StateValue="ALARM")["MetricAlarms"][0]
    assert (found["Threshold"], found["StateReason"]) == (6.0, "a test")
    items = cloudwatch.describe_alarm_history(AlarmName="high")["AlarmHistoryItems"]
    assert [item["HistoryItemType"] for item in items] == [
        "ConfigurationUpdate", "StateUpdate", "ConfigurationUpdate",
    ]  # fmt: skip
    cloudwatch.disable_alarm_actions(AlarmNames=["high"])
    assert not cloudwatch.describe_alarms()["MetricAlarms"][0]["ActionsEnabled"]
    for_metric = cloudwatch.describe_alarms_for_metric(Namespace="test", MetricName="a")
    assert len(for_metric["MetricAlarms"]) == 1
    cloudwatch.delete_alarms(AlarmNames=["high", "never was"])
    assert cloudwatch.describe_alarms()["MetricAlarms"] == []
    last = cloudwatch.describe_alarm_history(AlarmName="high")["AlarmHistoryItems"][0]
    assert last["HistorySummary"] == 'Alarm "high" deleted'


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"Period": 15}, "not 10, 20, 30"),
        ({"DatapointsToAlarm": 4}, "DatapointsToAlarm must not be greater"),
        ({"ComparisonOperator": "LessThanLowerThreshold"}, "ComparisonOperator"),
        ({"TreatMissingData": "sometimes"}, "TreatMissingData"),
        ({"EvaluationPeriods": 20000}, "Metrics cannot be checked across more than a day"),
        ({"EvaluationPeriods": 8, "Period": 86400}, "checked across more than a week"),
        ({"Threshold": float("nan")}, "parameter Threshold is invalid"),
        ({"Statistic": "p90"}, "statistic"),
        ({"Statistic": None, "ExtendedStatistic": "tm99"}, "tm99 for parameter Stat is not supp"),
        ({"ExtendedStatistic": "p90"}, "Must specify either Statistic or ExtendedStatistic"),
        ({"EvaluateLowSampleCountPercentile": "never"}, "not one of evaluate, ignore"),
        ({"Metrics": [{"Id": "e", "Expression": "1"}]}, "Must specify either Metrics or"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    cloudwatch: Any, change: dict[str, Any], text: str
) -> None:
    members = {name: value for name, value in alarm(**change).items() if value is not None}
    with pytest.raises(ClientError, match=text):
        cloudwatch.put_metric_alarm(**members)
    assert cloudwatch.describe_alarms()["MetricAlarms"] == []


@pytest.mark.parametrize("returning", [[], ["a", "b"]])
def test_an_alarm_watches_exactly_one_of_its_queries(cloudwatch: Any, returning: list[str]) -> None:
    queries = [{**stat(name, name), "ReturnData": name in returning} for name in ("a", "b")]
    with pytest.raises(ClientError, match="Exactly one element of the metrics list should return"):
        cloudwatch.put_metric_alarm(
            AlarmName="math", EvaluationPeriods=1, Threshold=1.0, Metrics=queries,
            ComparisonOperator="GreaterThanThreshold",
        )  # fmt: skip


def test_an_alarm_may_look_a_week_back_by_the_hour(cloudwatch: Any) -> None:
    cloudwatch.put_metric_alarm(**alarm(Period=3600, EvaluationPeriods=168))
    cloudwatch.put_metric_alarm(**alarm(Period=60, EvaluationPeriods=1440))


def test_a_page_may_be_larger_than_the_one_before(cloudwatch: Any) -> None:
    for name in "abc":
        cloudwatch.put_metric_alarm(**alarm(AlarmName=name))
    first = cloudwatch.describe_alarms(MaxRecords=1)
    rest = cloudwatch.describe_alarms(MaxRecords=50, NextToken=first["NextToken"])
    names = [each["AlarmName"] for each in first["MetricAlarms"] + rest["MetricAlarms"]]
    assert names == ["a", "b", "c"]


def test_the_history_tells_states_and_configurations_as_json(cloudwatch: Any) -> None:
    cloudwatch.put_metric_alarm(**alarm(OKActions=["arn:aws:sns:us-east-1:1:mail"]))
    data = json.dumps({"version": "1.0", "recentDatapoints": [7.0], "evaluatedDatapoints": []})
    with pytest.raises(ClientError, match="JSON") as raised:
        cloudwatch.set_alarm_state(
            AlarmName="high", StateValue="OK", StateReason="a test", StateReasonData="{"
        )
    assert raised.value.response["Error"]["Code"] == "InvalidFormat"
    cloudwatch.set_alarm_state(
        AlarmName="high", StateValue="OK", StateReason="a test", StateReasonData=data
    )
    cloudwatch.delete_alarms(AlarmNames=["high"])
    items = cloudwatch.describe_alarm_history(AlarmName="high", ScanBy="TimestampAscending")[
        "AlarmHistoryItems"
    ]
    created, changed, action, deleted = (json.loads(item["HistoryData"]) for item in items)
    assert (created["type"], deleted["type"]) == ("Create", "Delete")
    assert created["createdAlarm"]["alarmName"] == "high"
    assert created["createdAlarm"]["comparisonOperator"] == "GreaterThanThreshold"
    assert created["createdAlarm"]["okactions"] == ["arn:aws:sns:us-east-1:1:mail"]
    assert changed["oldState"] == {
        "stateValue": "INSUFFICIENT_DATA",
        "stateReason": "Unchecked: Initial alarm creation",
    }
    assert changed["newState"] == {
        "stateValue": "OK",
        "stateReason": "a test",
        "stateReasonData": {"version": "1.0", "recentDatapoints": [7.0]},
    }
    assert (action["actionState"], action["notificationResource"]) == (
        "Failed", "arn:aws:sns:us-east-1:1:mail",
    )  # fmt: skip
    assert cloudwatch.describe_alarm_history(HistoryItemType="Action")["AlarmHistoryItems"] == [
        items[2]
    ]


def test_setting_the_state_of_an_unknown_alarm_is_not_found(cloudwatch: Any) -> None:
    with pytest.raises(ClientError) as raised:
        cloudwatch.set_alarm_state(AlarmName="x", StateValue="OK", StateReason="r")
    assert raised.value.response["Error"]["Code"] == "ResourceNotFound"


def test_old_clients_speak_the_query_protocol(served: Served) -> None:
    now_s = int(NOW.timestamp())
    form = {
        "Action": "PutMetricData",
        "Version": "2010-08-01",
        "Namespace": "test",
        "MetricData.member.1.MetricName": "old",
        "MetricData.member.1.Value": "4.5",
        "MetricData.member.1.Timestamp": datetime.fromtimestamp(now_s - 60, UTC).isoformat(),
    }
    assert "<ResponseMetadata>" in query(served, form)
    listed = query(served, {"Action": "ListMetrics", "Version": "2010-08-01"})
    assert "<MetricName>old</MetricName>" in listed


def query(served: Served, form: dict[str, str]) -> str:
    request = AWSRequest(
        "POST",
        served.url + "/",
        data=urllib.parse.urlencode(form),
        headers={"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"},
    )
    key = dataclasses.asdict(served.key)
    credentials = Credentials(key["access_key_id"], key["secret_access_key"])
    SigV4Auth(credentials, "monitoring", REGION).add_auth(request)
    raw = urllib.request.Request(
        request.url, data=str(request.data).encode(), headers=dict(request.headers), method="POST"
    )
    with urllib.request.urlopen(raw, timeout=10) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        ({"StartTime": NOW}, "ValidationError", "must not equal"),
        ({"StartTime": NOW + timedelta(1)}, "ValidationError", "must be greater than StartTime"),
        ({"NextToken": "x"}, "InvalidNextToken", "previous page"),
        ({"NextToken": "7"}, "InvalidNextToken", "previous page"),
        ({"MetricDataQueries": [{"Id": "A", "Expression": "1"}]}, "ValidationError", "pattern"),
        ({"MetricDataQueries": [{"Id": "a"}]}, "ValidationError", "mutually exclusive"),
        (
            {"MetricDataQueries": [{"Id": "a", "Expression": "1", "AccountId": "1" * 12}]},
            "ValidationError",
            "not your own account",
        ),
    ],
)
def test_refusals_of_get_metric_data_have_the_codes_of_aws(
    cloudwatch: Any, change: dict[str, Any], code: str, text: str
) -> None:
    asked = {
        "StartTime": NOW - timedelta(minutes=15),
        "EndTime": NOW,
        "MetricDataQueries": [stat("a", "a")],
    }
    with pytest.raises(ClientError, match=text) as raised:
        cloudwatch.get_metric_data(**(asked | change))
    assert raised.value.response["Error"]["Code"] == code


def test_agents_send_values_for_percentiles_beside_statistics(cloudwatch: Any) -> None:
    statistics = {"SampleCount": 10.0, "Sum": 100.0, "Minimum": 1.0, "Maximum": 40.0}
    cloudwatch.put_metric_data(
        Namespace="test",
        MetricData=[
            {
                "MetricName": "both",
                "Timestamp": NOW - timedelta(minutes=2),
                "Values": [1.0, 40.0],
                "Counts": [9.0, 1.0],
                "StatisticValues": statistics,
            }
        ],
    )
    (point,) = cloudwatch.get_metric_statistics(
        Namespace="test",
        MetricName="both",
        StartTime=NOW - timedelta(minutes=5),
        EndTime=NOW,
        Period=60,
        Statistics=["SampleCount", "Sum", "Minimum", "Maximum"],
    )["Datapoints"]
    assert {name: point[name] for name in statistics} == statistics
    (median,) = cloudwatch.get_metric_data(
        StartTime=NOW - timedelta(minutes=5),
        EndTime=NOW,
        MetricDataQueries=[stat("a", "both", "p50")],
    )["MetricDataResults"][0]["Values"]
    assert median == pytest.approx(1.0, rel=0.02)


def test_metrics_of_an_entity_are_kept_without_it(cloudwatch: Any) -> None:
    datum = {"MetricName": "of-entity", "Timestamp": NOW - timedelta(minutes=2), "Value": 3.0}
    cloudwatch.put_metric_data(
        Namespace="test",
        EntityMetricData=[{"Entity": {"Attributes": {"a": "b"}}, "MetricData": [datum]}],
    )
    answer = cloudwatch.get_metric_data(
        StartTime=NOW - timedelta(minutes=5),
        EndTime=NOW,
        MetricDataQueries=[stat("a", "of-entity")],
    )
    assert answer["MetricDataResults"][0]["Values"] == [3.0]


def test_short_periods_of_a_minutes_metric_have_values_at_minute_starts(cloudwatch: Any) -> None:
    put(cloudwatch, "minutes", 1, 2)
    answer = cloudwatch.get_metric_statistics(
        Namespace="test",
        MetricName="minutes",
        StartTime=NOW - timedelta(minutes=15),
        EndTime=NOW,
        Period=10,
        Statistics=["Sum"],
    )
    found = sorted((point["Timestamp"], point["Sum"]) for point in answer["Datapoints"])
    assert found == [(NOW - timedelta(minutes=10), 1.0), (NOW - timedelta(minutes=9), 2.0)]


def test_metrics_of_another_account_are_none(cloudwatch: Any) -> None:
    put(cloudwatch, "mine", 1)
    assert cloudwatch.list_metrics(OwningAccount="1" * 12)["Metrics"] == []
    assert cloudwatch.list_metrics(OwningAccount=ACCOUNT)["Metrics"] != []
