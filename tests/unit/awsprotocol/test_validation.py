"""Constraints and types of members."""

from __future__ import annotations

from typing import Any

import pytest

from zeropull.awsprotocol.faults import ApiFault
from zeropull.awsprotocol.services import load_service
from zeropull.awsprotocol.validation import parse_members


def parse(operation: str, raw: Any, service: str = "sagemaker", **options: Any) -> dict[str, Any]:
    model = load_service(service).operation(operation)
    assert model is not None
    return parse_members(model.input_shape, raw, **options)


def fault(operation: str, raw: Any, service: str = "sagemaker") -> ApiFault:
    with pytest.raises(ApiFault) as caught:
        parse(operation, raw, service)
    return caught.value


def test_missing_members_are_null_in_the_text() -> None:
    assert fault("CreateEndpoint", {"EndpointName": "e"}).message == (
        "1 validation error detected: Value null at 'endpointConfigName' failed to satisfy "
        "constraint: Member must not be null"
    )
    assert "2 validation errors detected: " in fault("CreateEndpoint", {}).message


def test_unknown_members_are_refused_by_name() -> None:
    error = fault("DeleteEndpoint", {"EndpointName": "e", "Force": True})
    assert error.code == "ValidationException"
    assert "'Force'" in error.message


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ([], "an object"),
        ({"EndpointName": 5}, "a string"),
        ({"EndpointName": ["e"]}, "a string"),
        ({"MaxResults": "5"}, "an integer"),
        ({"MaxResults": 5.5}, "an integer"),
        ({"MaxResults": True}, "an integer"),
        ({"CreationTimeAfter": "yesterday"}, "seconds since the epoch"),
    ],
)
def test_wrong_types_are_a_serialization_exception(raw: Any, text: str) -> None:
    operation = "DeleteEndpoint" if "EndpointName" in raw else "ListEndpoints"
    error = fault(operation, raw)
    assert error.code == "SerializationException"
    assert text in error.message


def test_values_become_python_and_null_is_absent() -> None:
    parsed = parse(
        "ListEndpoints", {"MaxResults": 5.0, "CreationTimeAfter": 1.5, "NameContains": None}
    )
    assert parsed == {"MaxResults": 5, "CreationTimeAfter": 1.5}


def test_numbers_lists_and_maps_have_their_own_rules() -> None:
    config = {"EndpointConfigName": "c", "ProductionVariants": []}
    assert "'productionVariants' failed to satisfy constraint: Member must have length greater" in (
        fault("CreateEndpointConfig", config).message
    )
    variant = {"VariantName": "v", "InitialVariantWeight": -1.0, "InitialInstanceCount": 0}
    message = fault("CreateEndpointConfig", config | {"ProductionVariants": [variant]}).message
    assert "Value '-1.0' at 'productionVariants.1.member.initialVariantWeight'" in message
    assert "Member must have value greater than or equal to 1" in message


def test_extra_enum_values_are_accepted() -> None:
    variant = {"VariantName": "v", "InstanceType": "ml.mine"}
    raw = {"EndpointConfigName": "c", "ProductionVariants": [variant]}
    extras = {"ProductionVariantInstanceType": frozenset({"ml.mine"})}
    assert parse("CreateEndpointConfig", raw, enum_extras=extras)["ProductionVariants"] == [variant]
    assert "enum value set" in fault("CreateEndpointConfig", raw).message
