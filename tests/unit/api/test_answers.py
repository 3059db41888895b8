"""Codes, statuses and headers of faults by protocol."""

from __future__ import annotations

import json

import pytest

from zeropull.api.answers import fault_answer, output_answer
from zeropull.api.routing import Protocol, Route
from zeropull.awsprotocol.faults import ApiFault, internal_failure, throttled
from zeropull.awsprotocol.services import load_service

CLOUDWATCH = load_service("cloudwatch")
MISSING = ApiFault("ResourceNotFound", "no such alarm")


def route(protocol: Protocol, *, is_query_mode: bool = False) -> Route:
    return Route(protocol, CLOUDWATCH, "PutMetricData", is_query_mode)


@pytest.mark.parametrize("protocol", [Protocol.JSON, Protocol.CBOR])
def test_query_codes_are_for_clients_that_ask_for_them(protocol: Protocol) -> None:
    plain = fault_answer(MISSING, route(protocol), "id")
    assert (plain.status, "x-amzn-query-error" in plain.headers) == (400, False)
    asked = fault_answer(MISSING, route(protocol, is_query_mode=True), "id")
    assert (asked.status, asked.headers["x-amzn-query-error"]) == (404, "ResourceNotFound;Sender")


def test_statuses_that_no_model_has_stay() -> None:
    for fault, status in (
        (internal_failure(), 500),
        (ApiFault("AccessDeniedException", "", 403), 403),
    ):
        assert fault_answer(fault, route(Protocol.JSON), "id").status == status


def test_throttling_has_the_name_that_each_protocol_retries() -> None:
    assert json.loads(fault_answer(throttled(), route(Protocol.JSON), "id").body)["__type"] == (
        "ThrottlingException"
    )
    assert b"<Code>Throttling</Code>" in fault_answer(throttled(), route(Protocol.QUERY), "id").body
    asked = fault_answer(throttled(), route(Protocol.CBOR, is_query_mode=True), "id")
    assert asked.headers["x-amzn-query-error"] == "Throttling;Sender"


def test_an_operation_without_output_has_an_empty_body() -> None:
    for protocol in (Protocol.JSON, Protocol.CBOR):
        assert output_answer(CLOUDWATCH, route(protocol), None, "id").body == b""
