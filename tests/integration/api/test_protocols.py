"""JSON, query and refused protocols, seen by real clients: tables of other services plug in."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.session
import cbor2
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from tests.fixtures.aws_api import ACCOUNT, INSTANCE_TYPES, REGION, Served, serving
from zeropull.api import Call, Operation, OperationTable, create_api_app
from zeropull.api.keys import create_key, ensure_default_key, list_keys, write_credentials_file
from zeropull.awsprotocol.faults import ApiFault
from zeropull.errors import InvalidInput
from zeropull.resources.accounts import StoredKey
from zeropull.statestore import Store

MOMENT_S = 1_790_000_000.25


class Echo:
    """Handlers of three services that keep what they were given."""

    def __init__(self) -> None:
        self.seen: list[tuple[Call, dict[str, Any]]] = []

    def put_metric_data(self, call: Call, members: dict[str, Any]) -> None:
        self.seen.append((call, members))

    async def get_metric_data(self, call: Call, members: dict[str, Any]) -> dict[str, Any]:
        self.seen.append((call, members))
        result = {
            "Id": "a",
            "Label": "x < y & z",
            "Timestamps": [MOMENT_S],
            "Values": [1.5],
            "StatusCode": "Complete",
        }
        return {"MetricDataResults": [result], "Messages": None}

    def set_alarm_state(self, call: Call, members: dict[str, Any]) -> None:
        if members["AlarmName"] == "ours":
            raise RuntimeError("secret detail")
        if members["AlarmName"] == "combination":
            raise ApiFault("InvalidParameterCombinationException", "both <given>")
        raise ApiFault("ResourceNotFound", "no such alarm")

    def register(self, call: Call, members: dict[str, Any]) -> dict[str, Any]:
        self.seen.append((call, members))
        if members.get("MinCapacity", 0) > members.get("MaxCapacity", 99):
            raise InvalidInput("minimum above maximum")
        return {"ScalableTargetARN": "arn:x"}

    def tables(self) -> list[OperationTable]:
        return [
            OperationTable(
                "cloudwatch",
                (
                    Operation("PutMetricData", self.put_metric_data),
                    Operation("GetMetricData", self.get_metric_data),
                    Operation("SetAlarmState", self.set_alarm_state),
                ),
            ),
            OperationTable(
                "application-autoscaling", (Operation("RegisterScalableTarget", self.register),)
            ),
        ]


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def served(tmp_path: Path, echo: Echo) -> Iterator[Served]:
    with Store.open(tmp_path / "zeropull.db") as store:
        key, _ = ensure_default_key(store, ACCOUNT, time.time())
        app = create_api_app(
            store, region=REGION, instance_types=INSTANCE_TYPES, tables=echo.tables()
        )
        with serving(app) as url:
            yield Served(url, store, key, time.time)


def cloudwatch(served: Served, protocol: str) -> Any:
    """A botocore client that speaks `protocol`, as older and newer releases do."""
    session = botocore.session.Session()
    loader = session.get_component("data_loader")
    metadata = loader.load_service_model("cloudwatch", "service-2")["metadata"]
    metadata["protocol"], metadata["protocols"] = protocol, [protocol]
    if protocol == "query":
        metadata.pop("awsQueryCompatible", None)
    return session.create_client(
        "cloudwatch",
        region_name=REGION,
        endpoint_url=served.url,
        aws_access_key_id=served.key.access_key_id,
        aws_secret_access_key=served.key.secret_access_key,
        config=Config(retries={"total_max_attempts": 1}),
    )


ALL = pytest.mark.parametrize("protocol", ["json", "query", "smithy-rpc-v2-cbor"])


@ALL
def test_cloudwatch_means_the_same_in_every_protocol(
    served: Served, echo: Echo, protocol: str
) -> None:
    client = cloudwatch(served, protocol)
    when = datetime(2026, 11, 24, 1, 2, 3, tzinfo=UTC)
    data = [
        {
            "MetricName": "m & <n>",
            "Dimensions": [{"Name": "d", "Value": str(n)}],
            "Timestamp": when,
            "Values": [1.5, -2.0],
            "Counts": [1.0, 2.0],
            "StorageResolution": 1,
        }
        for n in range(12)
    ]
    client.put_metric_data(Namespace="ns", MetricData=data)
    call, members = echo.seen[-1]
    assert call.account == ACCOUNT
    assert members == {
        "Namespace": "ns",
        "MetricData": [{**datum, "Timestamp": when.timestamp()} for datum in data],
    }
    answer = client.get_metric_data(
        MetricDataQueries=[{"Id": "a", "Expression": "b+1", "ReturnData": False}],
        StartTime=when,
        EndTime=when,
    )
    result = answer["MetricDataResults"][0]
    assert result["Timestamps"][0].timestamp() == MOMENT_S
    assert (result["Label"], result["Values"]) == ("x < y & z", [1.5])
    assert answer["ResponseMetadata"]["RequestId"] == echo.seen[-1][0].request_id
    assert echo.seen[-1][1]["MetricDataQueries"][0]["ReturnData"] is False


@ALL
def test_large_bodies_may_come_zipped(served: Served, echo: Echo, protocol: str) -> None:
    data = [{"MetricName": "m" * 200, "Value": float(n)} for n in range(300)]
    cloudwatch(served, protocol).put_metric_data(Namespace="ns", MetricData=data)
    assert len(echo.seen[-1][1]["MetricData"]) == 300


@ALL
def test_cloudwatch_errors_have_their_query_codes_in_every_protocol(
    served: Served, protocol: str
) -> None:
    client = cloudwatch(served, protocol)

    def refusal(name: str) -> dict[str, Any]:
        with pytest.raises(ClientError) as caught:
            client.set_alarm_state(AlarmName=name, StateValue="OK", StateReason="r")
        return dict(caught.value.response)

    combination = refusal("combination")
    assert combination["Error"]["Code"] == "InvalidParameterCombination"
    assert combination["Error"]["Message"] == "both <given>"
    missing = refusal("unknown")
    assert missing["Error"]["Code"] == "ResourceNotFound"
    assert missing["ResponseMetadata"]["HTTPStatusCode"] == 404
    ours = refusal("ours")
    assert ours["Error"]["Code"] == "InternalFailure"
    assert "secret" not in ours["Error"]["Message"]
    with pytest.raises(ClientError) as caught:
        client.set_alarm_state(AlarmName="a", StateValue="NO", StateReason="r")
    assert caught.value.response["Error"]["Code"] == "ValidationError"
    assert "enum value set: [OK, ALARM, INSUFFICIENT_DATA]" in str(caught.value)


@ALL
def test_a_wrong_secret_has_the_code_of_its_protocol(served: Served, protocol: str) -> None:
    served.key = StoredKey(served.key.access_key_id, "wrong", ACCOUNT, 0.0)
    with pytest.raises(ClientError) as caught:
        cloudwatch(served, protocol).set_alarm_state(
            AlarmName="a", StateValue="OK", StateReason="r"
        )
    assert caught.value.response["Error"]["Code"] == "SignatureDoesNotMatch"


def test_autoscaling_plugs_in(served: Served, echo: Echo) -> None:
    client = served.client("application-autoscaling")
    target = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": "endpoint/e/variant/v",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
    assert client.register_scalable_target(**target, MinCapacity=1)["ScalableTargetARN"] == "arn:x"
    with pytest.raises(client.exceptions.ValidationException, match="minimum above"):
        client.register_scalable_target(**target, MinCapacity=3, MaxCapacity=2)
    with pytest.raises(ClientError, match=r"DeregisterScalableTarget .* is not supported here"):
        client.deregister_scalable_target(**target)


def test_authentication_failures_have_the_codes_of_aws(served: Served) -> None:
    for options, code in [
        ({"aws_secret_access_key": "wrong"}, "InvalidSignatureException"),
        ({"aws_access_key_id": "AKIANOBODY"}, "UnrecognizedClientException"),
        ({"region_name": "eu-west-3"}, "InvalidSignatureException"),
    ]:
        with pytest.raises(ClientError) as caught:
            served.client("sagemaker", **options).list_models()
        assert caught.value.response["Error"]["Code"] == code
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    assert served.client("sagemaker", aws_session_token="lingering").list_models()["Models"] == []


def test_new_and_disabled_keys_take_effect_at_once(served: Served) -> None:
    second = create_key(served.store, ACCOUNT, time.time())
    served.key = second
    served.client("sagemaker").list_models()
    served.store.put(StoredKey(second.access_key_id, second.secret_access_key, ACCOUNT, 0, False))
    with pytest.raises(ClientError, match="UnrecognizedClientException"):
        served.client("sagemaker").list_models()


def raw(
    served: Served,
    headers: dict[str, str],
    body: bytes = b"{}",
    *,
    method: str = "POST",
    path: str = "/",
    service: str = "sagemaker",
) -> tuple[int, dict[str, str], bytes]:
    """One signed request as written here."""
    request = AWSRequest(method, served.url + path, headers, body)
    credentials = Credentials(served.key.access_key_id, served.key.secret_access_key)
    SigV4Auth(credentials, service, REGION).add_auth(request)
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=10)
    try:
        connection.request(method, path, body, dict(request.headers))
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_what_is_no_operation_is_unknown(served: Served) -> None:
    for headers, path, method in [
        ({"X-Amz-Target": "SageMaker.CreateTrainingJob"}, "/", "POST"),
        ({"X-Amz-Target": "SageMaker.Nonsense"}, "/", "POST"),
        ({"X-Amz-Target": "DynamoDB.ListTables"}, "/", "POST"),
        ({}, "/", "POST"),
        ({}, "/", "GET"),
        ({"X-Amz-Target": "SageMaker.ListModels"}, "/elsewhere", "POST"),
    ]:
        status, answer, body = raw(served, headers, path=path, method=method)
        assert status == 404
        assert json.loads(body)["__type"] == "UnknownOperationException"
        assert answer["x-amzn-requestid"]


CBOR = {"smithy-protocol": "rpc-v2-cbor", "Content-Type": "application/cbor"}
GRANITE = "/service/GraniteServiceVersion20100801/operation/"


def test_cbor_errors_have_an_absolute_shape_and_smithys_status(served: Served) -> None:
    """Statuses and header of the query protocol are for clients that ask for them."""
    body = cbor2.dumps({"AlarmName": "unknown", "StateValue": "OK", "StateReason": "r"})
    for headers, expected, query_error in [
        (CBOR, 400, None),
        (CBOR | {"x-amzn-query-mode": "true"}, 404, "ResourceNotFound;Sender"),
    ]:
        status, answer, text = raw(
            served, headers, body, path=GRANITE + "SetAlarmState", service="monitoring"
        )
        assert (status, answer.get("x-amzn-query-error")) == (expected, query_error)
        assert answer["content-type"] == "application/cbor"
        assert answer["smithy-protocol"] == "rpc-v2-cbor"
        assert answer["x-amzn-requestid"]
        assert cbor2.loads(text) == {
            "__type": "com.amazonaws.cloudwatch#ResourceNotFound",
            "message": "no such alarm",
        }


def test_json_statuses_are_those_of_aws_json_without_query_mode(served: Served) -> None:
    headers = {"X-Amz-Target": "GraniteServiceVersion20100801.SetAlarmState"}
    body = json.dumps({"AlarmName": "unknown", "StateValue": "OK", "StateReason": "r"}).encode()
    status, answer, _ = raw(served, headers, body, service="monitoring")
    assert (status, "x-amzn-query-error" in answer) == (400, False)
    headers["x-amzn-query-mode"] = "true"
    status, answer, _ = raw(served, headers, body, service="monitoring")
    assert (status, answer["x-amzn-query-error"]) == (404, "ResourceNotFound;Sender")


def test_cbor_of_indefinite_length_means_the_same(served: Served, echo: Echo) -> None:
    datum = b"\xbf\x6aMetricName\x7f\x62ab\x61c\xff\x65Value\xf9\x3c\x00\x69Timestamp\xc1\x1a"
    datum += int(MOMENT_S).to_bytes(4, "big") + b"\x64Unit\xf7\xff"
    body = b"\xbf\x69Namespace\x62ns\x6aMetricData\x9f" + datum + b"\xff\xff"
    status, _, _ = raw(served, CBOR, body, path=GRANITE + "PutMetricData", service="monitoring")
    assert status == 200
    assert echo.seen[-1][1] == {
        "Namespace": "ns",
        "MetricData": [{"MetricName": "abc", "Value": 1.0, "Timestamp": float(int(MOMENT_S))}],
    }


def test_cbor_is_spoken_where_the_model_says_so_only(served: Served) -> None:
    for headers, path, method in [
        (CBOR, "/service/SageMaker/operation/ListModels", "POST"),
        (CBOR, GRANITE + "Nonsense", "POST"),
        (CBOR, GRANITE + "ListMetrics", "GET"),
        (CBOR, "/", "POST"),
        ({"smithy-protocol": "rpc-v3-cbor"}, GRANITE + "ListMetrics", "POST"),
        ({}, GRANITE + "ListMetrics", "POST"),
    ]:
        status, answer, body = raw(
            served, headers, b"\xa0", path=path, method=method, service="monitoring"
        )
        assert (status, answer["content-type"]) == (404, "application/cbor")
        assert cbor2.loads(body)["__type"].endswith("UnknownOperationException")


def test_bodies_that_are_broken_or_too_large_are_refused(served: Served) -> None:
    target = {"X-Amz-Target": "SageMaker.ListModels"}
    for headers, body, code in [
        ({}, b"{", "SerializationException"),
        ({"Content-Encoding": "gzip"}, b"no gzip", "SerializationException"),
        ({"Content-Encoding": "br"}, b"", "SerializationException"),
        ({"Content-Encoding": "gzip"}, gzip.compress(b"{}" * 9)[:-9], "SerializationException"),
        (
            {"Content-Encoding": "gzip"},
            gzip.compress(bytes(20 << 20)),
            "RequestEntityTooLargeException",
        ),
        ({}, os.urandom(5 << 20), "RequestEntityTooLargeException"),
    ]:
        status, _, answer = raw(served, target | headers, body)
        assert json.loads(answer)["__type"] == code
        assert status in (400, 413)
    assert raw(served, target | {"Content-Encoding": "gzip"}, gzip.compress(b"{}"))[0] == 200


@pytest.mark.parametrize(
    "form",
    [
        "MetricData=x",
        "MetricData.member.x.Value=1",
        "MetricData.member.1=5",
        "Namespace.member.1=a",
        "Namespace=a&Namespace=b",
        "A" + ".b" * 40 + "=1",
        "Namespace=a&Unknown.Thing=1",
        "MetricData.member.1.Value=abc&Namespace=a",
    ],
)
def test_malformed_forms_are_refused(served: Served, form: str) -> None:
    body = f"Action=PutMetricData&Version=2010-08-01&{form}".encode()
    content_type = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
    status, headers, answer = raw(served, content_type, body, service="monitoring")
    assert status == 400
    assert headers["content-type"].startswith("text/xml")
    assert b"<ErrorResponse" in answer
    assert b"<RequestId>" in answer


def test_garbage_on_the_wire_does_not_stop_the_server(served: Served) -> None:
    parts = urlsplit(served.url)
    for data in (b"\x00\xff" * 100, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: zz\r\n\r\n"):
        with socket.create_connection((str(parts.hostname), parts.port or 0), timeout=10) as peer:
            peer.sendall(data)
            assert b"400" in peer.recv(4096)
    assert served.client("sagemaker").list_models()["Models"] == []


def test_the_default_key_is_made_once_and_kept_private(served: Served, tmp_path: Path) -> None:
    again, made = ensure_default_key(served.store, ACCOUNT, time.time())
    assert (again, made) == (served.key, False)
    assert [key.access_key_id for key in list_keys(served.store)] == [served.key.access_key_id]
    assert served.key.secret_access_key not in repr(served.key)
    file = tmp_path / "credentials"
    write_credentials_file(file, again, REGION)
    assert file.stat().st_mode & 0o777 == 0o600
    loaded = botocore.session.Session()
    loaded.set_config_variable("credentials_file", str(file))
    with pytest.raises(InvalidInput):
        ensure_default_key(served.store, "12", time.time())
