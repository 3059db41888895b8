"""Constraints, types, patterns and classes of members."""

from __future__ import annotations

from typing import Any

import pytest

from zeropull.awsprotocol import aws_json
from zeropull.awsprotocol.arns import parse_arn, partition_of, sagemaker_arn
from zeropull.awsprotocol.faults import ApiFault, fault_of
from zeropull.awsprotocol.members import MemberClass, MemberRules, member_rows
from zeropull.awsprotocol.patterns import compile_pattern
from zeropull.awsprotocol.rest_json import request_headers, response_headers
from zeropull.awsprotocol.services import load_service
from zeropull.awsprotocol.validation import parse_members
from zeropull.errors import Conflict, IntegrityError, InvalidInput, NotFound

SERVICES = ("sagemaker", "application-autoscaling", "cloudwatch", "sagemaker-runtime")


def parse(operation: str, raw: Any, service: str = "sagemaker", **options: Any) -> dict[str, Any]:
    model = load_service(service).operation(operation)
    assert model is not None
    return parse_members(model.input_shape, raw, **options)


def fault(operation: str, raw: Any, service: str = "sagemaker") -> ApiFault:
    with pytest.raises(ApiFault) as caught:
        parse(operation, raw, service)
    return caught.value


def test_every_pattern_of_every_model_compiles() -> None:
    for name in SERVICES:
        model = load_service(name).model
        for shape_name in model.shape_names:
            pattern = model.shape_for(shape_name).metadata.get("pattern")
            if pattern:
                compile_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"([\p{L}\p{Z}\p{N}_.:/=+\-@]*)", "Größe 数 १-@", "no#hash"),
        (r"\p{ASCII}*", "plain~", "é"),
        (r"[\u0020-\uD7FF\uE000-\uFFFD\uD800\uDC00-\uDBFF\uDFFF\r\n\t]*", "a\n😀", "\x00"),
        (r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", "a--b", "a-"),
        (r"\A\S[\p{Print}]*\z", "ok then", " no"),
    ],
)
def test_patterns_of_java_mean_the_same(pattern: str, good: str, bad: str) -> None:
    assert compile_pattern(pattern).fullmatch(good)
    assert not compile_pattern(pattern).fullmatch(bad)


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


def test_json_bodies_that_are_none_are_refused() -> None:
    assert aws_json.parse_body(b"") == {}
    for body in (b"{", b"NaN", b'{"a":1,"a":2}', b"\xff", b"[" * 50_000):
        with pytest.raises(ApiFault) as caught:
            aws_json.parse_body(body)
        assert caught.value.code == "SerializationException"


def test_the_three_classes_of_members() -> None:
    model = load_service("sagemaker").operation("CreateEndpointConfig")
    assert model is not None
    rules = MemberRules(
        accepted={"KmsKeyId": "no KMS"}, refused={"ProductionVariants.ServerlessConfig": "none"}
    )
    rows = {row.path: row for row in member_rows(model, rules)}
    assert rows["KmsKeyId"].member_class is MemberClass.ACCEPTED
    assert rows["ProductionVariants.ServerlessConfig"].member_class is MemberClass.REFUSED
    assert rows["ProductionVariants.VariantName"].member_class is MemberClass.SUPPORTED
    assert "ProductionVariants.ServerlessConfig.MemorySizeInMB" not in rows
    assert rules.check("Op", {"KmsKeyId": "k"}) == [("KmsKeyId", "no KMS")]
    with pytest.raises(ApiFault, match=r"ProductionVariants\.ServerlessConfig of Op"):
        rules.check("Op", {"ProductionVariants": [{"ServerlessConfig": {}}]})
    with pytest.raises(ValueError, match="Nonsense"):
        member_rows(model, MemberRules(refused={"Nonsense": ""}))


def test_errors_have_the_code_of_their_service() -> None:
    assert fault_of(NotFound("x"), "sagemaker").code == "ValidationException"
    assert fault_of(Conflict("x"), "sagemaker").code == "ValidationException"
    assert fault_of(NotFound("x"), "application-autoscaling").code == "ObjectNotFoundException"
    assert fault_of(NotFound("x"), "cloudwatch").status == 404
    hidden = fault_of(IntegrityError("the path /secret"), "sagemaker")
    assert (hidden.code, hidden.status) == ("InternalFailure", 500)
    assert "secret" not in hidden.message


def test_arns_are_made_and_read() -> None:
    text = sagemaker_arn("cn-north-1", "000000000000", "endpoint", "e")
    assert text == "arn:aws-cn:sagemaker:cn-north-1:000000000000:endpoint/e"
    arn = parse_arn(text)
    assert (arn.resource_type, arn.resource_name, str(arn)) == ("endpoint", "e", text)
    assert partition_of("us-gov-west-1") == "aws-us-gov"
    for bad in ("", "arn:aws:x", "urn:aws:a:b:c:d"):
        with pytest.raises(InvalidInput):
            parse_arn(bad)


def test_the_headers_of_the_runtime_come_from_its_model() -> None:
    headers = request_headers("InvokeEndpoint")
    assert headers["TargetVariant"] == "x-amzn-sagemaker-target-variant"
    streaming = request_headers("InvokeEndpointWithResponseStream")
    assert streaming["Accept"] == "x-amzn-sagemaker-accept"
    assert response_headers("InvokeEndpoint")["InvokedProductionVariant"] == (
        "x-amzn-invoked-production-variant"
    )
