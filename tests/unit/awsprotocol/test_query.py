"""Forms in, XML out."""

from __future__ import annotations

import pytest

from zeropull.awsprotocol import query
from zeropull.awsprotocol.faults import ApiFault
from zeropull.awsprotocol.services import load_service

CLOUDWATCH = load_service("cloudwatch")


def test_numbered_fields_are_lists_in_order() -> None:
    shape = CLOUDWATCH.model.operation_model("PutMetricData").input_shape
    form = query.parse_form(
        b"Action=x&Namespace=ns&MetricData.member.10.MetricName=b&MetricData.member.2.MetricName=a"
    )
    assert query.members_of(shape, form) == {
        "Namespace": "ns",
        "MetricData": [{"MetricName": "a"}, {"MetricName": "b"}],
    }
    assert query.members_of(shape, {"MetricData": ""}) == {"MetricData": []}


@pytest.mark.parametrize("body", [b"x", b"a=1&a=2", b"\xff=1", b"a=1&" * (query.MAX_FIELDS + 1)])
def test_what_is_no_form_is_refused(body: bytes) -> None:
    with pytest.raises(ApiFault) as caught:
        query.parse_form(body)
    assert caught.value.code == "MalformedQueryString"


def test_outputs_are_xml_without_characters_that_xml_has_not() -> None:
    model = CLOUDWATCH.model.operation_model("ListMetrics")
    metric = {"Namespace": "a<b\0", "MetricName": "m", "Dimensions": []}
    text = query.serialize_output(CLOUDWATCH, model, {"Metrics": [metric]}, "id").decode()
    assert "<Namespace>a&lt;b\ufffd</Namespace>" in text
    assert "<RequestId>id</RequestId>" in text


def test_faults_say_whose_they_are() -> None:
    for fault, side in ((ApiFault("a", "b"), "Sender"), (ApiFault("a", "b", 503), "Receiver")):
        text = query.serialize_fault(None, fault, "Code", "id").decode()
        assert f"<Type>{side}</Type><Code>Code</Code><Message>b</Message>" in text
