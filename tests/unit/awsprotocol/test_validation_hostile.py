"""Whatever comes in, the answer is a fault, never a crash."""

from __future__ import annotations

import contextlib
import json
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zeropull.awsprotocol import aws_json, query
from zeropull.awsprotocol.faults import ApiFault
from zeropull.awsprotocol.services import load_service
from zeropull.awsprotocol.validation import parse_members

OPERATIONS = [
    ("sagemaker", "CreateModel"),
    ("sagemaker", "CreateEndpointConfig"),
    ("sagemaker", "UpdateEndpoint"),
    ("sagemaker", "ListEndpoints"),
    ("cloudwatch", "PutMetricData"),
    ("cloudwatch", "GetMetricData"),
    ("application-autoscaling", "PutScalingPolicy"),
]
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.just(10**400)
)


def shaped(shape: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    """Mostly the right form, sometimes anything."""
    if shape.type_name == "structure" and depth < 4:
        members = {name: shaped(member, depth + 1) for name, member in shape.members.items()}
        good: st.SearchStrategy[Any] = st.fixed_dictionaries({}, optional=members)
    elif shape.type_name == "list" and depth < 4:
        good = st.lists(shaped(shape.member, depth + 1), max_size=2)
    elif shape.type_name == "map":
        good = st.dictionaries(st.text(max_size=5), scalars, max_size=2)
    else:
        enum = shape.metadata.get("enum")
        good = st.sampled_from(enum) | scalars if enum else scalars
    return st.one_of(good, good, good, scalars, st.lists(scalars, max_size=1))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(OPERATIONS))
def test_json_of_any_kind_is_parsed_or_refused(data: Any, operation: tuple[str, str]) -> None:
    model = load_service(operation[0]).operation(operation[1])
    assert model is not None
    raw = data.draw(shaped(model.input_shape))
    with contextlib.suppress(ApiFault):
        body = json.dumps(raw).encode()
        members = parse_members(model.input_shape, aws_json.parse_body(body))
        assert isinstance(members, dict)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.lists(
            st.sampled_from(
                ["MetricData", "member", "1", "2", "x", "Value", "Dimensions", "Namespace", "entry"]
            ),
            min_size=1,
            max_size=6,
        ).map(".".join),
        st.text(max_size=8),
        max_size=6,
    )
)
def test_forms_of_any_kind_are_parsed_or_refused(fields: dict[str, str]) -> None:
    model = load_service("cloudwatch").operation("PutMetricData")
    assert model is not None
    with contextlib.suppress(ApiFault):
        form = query.parse_form(urlencode(fields).encode())
        raw = query.members_of(model.input_shape, form)
        parse_members(model.input_shape, raw, is_text=True)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100))
def test_bytes_of_any_kind_are_parsed_or_refused(body: bytes) -> None:
    for parse in (aws_json.parse_body, query.parse_form):
        with contextlib.suppress(ApiFault):
            parse(body)


def test_a_number_that_no_double_holds_is_refused() -> None:
    model = load_service("sagemaker").operation("ListEndpoints")
    assert model is not None
    for name in ("MaxResults", "CreationTimeAfter"):
        with pytest.raises(ApiFault):
            parse_members(model.input_shape, {name: 10**400})
