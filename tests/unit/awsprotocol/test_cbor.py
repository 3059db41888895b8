"""Bodies of Smithy's RPC v2 CBOR: what is understood, and what never reaches the decoder."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zeropull.awsprotocol import cbor
from zeropull.awsprotocol.faults import ApiFault
from zeropull.awsprotocol.limits import MAX_CONTAINERS, MAX_DEPTH, MAX_ITEMS
from zeropull.awsprotocol.services import load_service


def refusal(body: bytes) -> ApiFault:
    with pytest.raises(ApiFault) as caught:
        cbor.parse_body(body)
    return caught.value


def test_items_of_definite_and_indefinite_length_are_read() -> None:
    expected = {"a": [1, "bc", b"de", None, True], "t": 1.5}
    definite = cbor2.dumps(expected | {"t": cbor2.CBORTag(1, 1.5)})
    assert cbor.parse_body(definite) == expected
    indefinite = (
        b"\xbf\x61a\x9f\x01\x7f\x61b\x61c\xff\x5f\x41d\x41e\xff\xf6\xf5\xff"
        b"\x7f\x61t\xff\xc1\xf9\x3e\x00\xff"
    )
    assert cbor.parse_body(indefinite) == expected
    assert cbor.parse_body(b"") == {}


def test_timestamps_may_be_integers_and_any_float() -> None:
    for number in (b"\x1a\x6a\xb1\x3b\x80", b"\xfb\x41\xda\xac\x4e\xe0\x00\x00\x00"):
        assert cbor.parse_body(b"\xa1\x61t\xc1" + number) == {"t": 1790000000.0}


def test_undefined_is_null() -> None:
    assert cbor.parse_body(b"\xa1\x61a\xf7") == {"a": None}


@pytest.mark.parametrize(
    "body",
    [
        b"\xa1\x61a",  # cut short
        b"\x9b\x00\x00\x00\x7f\xff\xff\xff\xff",  # a list of 2^39 items
        b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff",  # bytes without end
        b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x81" * 100_000 + b"\x00",
        b"\x9f" * 100_000,
        b"\xc1" * 100_000 + b"\x00",
        b"\x7f" * 100_000,
        b"\x5f\x61a\xff",  # a chunk of text in bytes
        b"\xa2\x61a\x01\x61a\x02",  # a key twice
        b"\xa1\x01\x02",  # a number as key
        b"\xbf\x61a\xff",  # a key without value
        b"\xc2\x41\x01",  # a big number
        b"\xc4\x82\x1b\x00\x00\x00\x7f\xff\xff\xff\xff\x01",  # a decimal with a huge exponent
        b"\xd8\x1c\x81\xd8\x1d\x00",  # a list that contains itself
        b"\xc1\x61a",  # a time that is text
        b"\xc1\xc1\x01\x00",
        b"\xf0",
        b"\xf8\xff",
        b"\xfc",
        b"\xff",
        b"\x1f",
        b"\x61\xff",  # no UTF-8
        b"\x01\x01",  # two items
    ],
)
def test_what_is_malformed_or_hostile_is_refused(body: bytes) -> None:
    assert refusal(body).code == "SerializationException"


def test_the_number_of_items_and_the_depth_are_bounded() -> None:
    assert refusal(cbor2.dumps([0] * (MAX_ITEMS + 1))).status == 413
    assert refusal(cbor2.dumps([[]] * (MAX_CONTAINERS + 1))).status == 413
    deep: Any = 0
    for _ in range(MAX_DEPTH - 2):
        deep = [deep]
    assert cbor.parse_body(cbor2.dumps(deep)) == deep
    assert "deeper" in refusal(cbor2.dumps([[deep]])).message


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_bytes_of_any_kind_are_parsed_or_refused(body: bytes) -> None:
    with contextlib.suppress(ApiFault):
        cbor.parse_body(body)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.data())
def test_what_the_library_writes_is_read_and_broken_bytes_of_it_are_a_fault(
    value: Any, data: Any
) -> None:
    body = cbor2.dumps(value)
    assert cbor2.dumps(cbor.parse_body(body)) == body
    broken = bytearray(body)
    broken[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ApiFault):
        cbor.parse_body(bytes(broken))


def test_outputs_have_tagged_times_and_doubles() -> None:
    model = load_service("cloudwatch").operation("GetMetricData")
    assert model is not None
    written = cbor.serialize_output(
        model.output_shape,
        {
            "MetricDataResults": [{"Id": "a", "Timestamps": [10.1234], "Values": [1, math.nan]}],
            "NextToken": None,
        },
    )
    assert written.count(b"\xc1\xfb") == 1
    result = cbor2.loads(written, semantic_decoders={1: lambda value, immutable: value})
    assert result["MetricDataResults"][0]["Timestamps"] == [10.123]
    assert str(result["MetricDataResults"][0]["Values"]) == "[1.0, nan]"
    assert "NextToken" not in result
    assert cbor.serialize_output(None, None) == b""


def test_a_fault_has_its_message_under_the_name_of_its_shape_too() -> None:
    service = load_service("cloudwatch")
    shape = next(s for s in service.model.error_shapes if "Message" in s.members)
    body = cbor2.loads(cbor.serialize_fault(service, ApiFault("x", "why"), shape.name))
    assert (body["message"], body["Message"]) == ("why", "why")
