"""Bodies of awsJson."""

from __future__ import annotations

import pytest

from zeropull.awsprotocol import aws_json
from zeropull.awsprotocol.faults import ApiFault
from zeropull.awsprotocol.limits import MAX_CONTAINERS, MAX_ITEMS


def test_json_bodies_that_are_none_are_refused() -> None:
    assert aws_json.parse_body(b"") == {}
    for body in (b"{", b"NaN", b'{"a":1,"a":2}', b"\xff", b"[" * 50_000):
        with pytest.raises(ApiFault) as caught:
            aws_json.parse_body(body)
        assert caught.value.code == "SerializationException"


def test_the_number_of_values_is_bounded_before_they_are_parsed() -> None:
    for body in (b"[" + b"0," * MAX_ITEMS + b"0]", b"[" + b"[]," * MAX_CONTAINERS + b"0]"):
        with pytest.raises(ApiFault) as caught:
            aws_json.parse_body(body)
        assert caught.value.status == 413


def test_half_a_surrogate_pair_is_refused() -> None:
    assert aws_json.parse_body(rb'"\ud83d\ude00"') == "😀"
    with pytest.raises(ApiFault):
        aws_json.parse_body(rb'{"a": "\ud83d"}')
