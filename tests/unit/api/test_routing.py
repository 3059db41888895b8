"""What a request names, by its head alone."""

from __future__ import annotations

import pytest

from zeropull.api.messages import ApiRequest
from zeropull.api.routing import Protocol, Route, find_route
from zeropull.awsprotocol.faults import ApiFault
from zeropull.awsprotocol.services import load_service

SERVICES = {name: load_service(name) for name in ("sagemaker", "cloudwatch")}
GRANITE = "GraniteServiceVersion20100801"


def route_of(method: str, target: str, **headers: str) -> Route:
    named = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
    route = Route()
    find_route(ApiRequest(method, target, named, b"", "id"), SERVICES, route)
    return route


def test_json_is_named_by_its_target() -> None:
    route = route_of("POST", "/", X_Amz_Target="SageMaker.ListModels")
    assert (route.protocol, route.operation) == (Protocol.JSON, "ListModels")
    assert route.service is SERVICES["sagemaker"]
    assert not route.is_query_mode
    asked = route_of("POST", "/", X_Amz_Target=f"{GRANITE}.X", X_Amzn_Query_Mode="True")
    assert asked.is_query_mode


def test_cbor_is_named_by_its_path() -> None:
    path = f"/service/{GRANITE}/operation/ListMetrics"
    route = route_of("POST", path, Smithy_Protocol="rpc-v2-cbor")
    assert (route.protocol, route.operation) == (Protocol.CBOR, "ListMetrics")
    assert route.service is SERVICES["cloudwatch"]


def test_a_form_is_the_query_protocol_and_not_read_here() -> None:
    route = route_of("POST", "/", Content_Type="application/x-www-form-urlencoded; charset=utf-8")
    assert (route.protocol, route.operation) == (Protocol.QUERY, "")
    assert route.service is SERVICES["cloudwatch"]


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET", "/", {"X_Amz_Target": "SageMaker.ListModels"}),
        ("POST", "/", {"X_Amz_Target": "DynamoDB.ListTables"}),
        ("POST", "/x", {"X_Amz_Target": "SageMaker.ListModels"}),
        ("POST", "/service/SageMaker/operation/X", {"Smithy_Protocol": "rpc-v2-cbor"}),
        ("POST", f"/service/{GRANITE}/operation/X/y", {"Smithy_Protocol": "rpc-v2-cbor"}),
        ("POST", f"/service/{GRANITE}/operation/X", {"Smithy_Protocol": "rpc-v2-json"}),
        ("POST", f"/service/{GRANITE}/operation/X", {}),
        ("POST", "/", {}),
    ],
)
def test_what_names_nothing_is_unknown(method: str, target: str, headers: dict[str, str]) -> None:
    with pytest.raises(ApiFault) as caught:
        route_of(method, target, **headers)
    assert (caught.value.code, caught.value.status) == ("UnknownOperationException", 404)
