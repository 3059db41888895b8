"""Service models of botocore."""

from __future__ import annotations

from zeropull.awsprotocol.services import load_service


def test_protocols_and_names_come_from_the_models() -> None:
    cloudwatch, sagemaker = load_service("cloudwatch"), load_service("sagemaker")
    assert (cloudwatch.speaks_cbor, cloudwatch.is_query_compatible) == (True, True)
    assert (sagemaker.speaks_cbor, sagemaker.is_query_compatible) == (False, False)
    assert cloudwatch.signing_name == "monitoring"
    assert cloudwatch.json_content_type == "application/x-amz-json-1.0"
    assert sagemaker.target_prefix == "SageMaker"
    assert sagemaker.operation("Nonsense") is None


def test_errors_are_found_by_shape_and_by_query_code() -> None:
    service = load_service("cloudwatch")
    entry = ("InvalidParameterValueException", "InvalidParameterValue", 400)
    assert service.error("InvalidParameterValueException") == entry
    assert service.error("InvalidParameterValue") == entry
    assert service.error("NotOfThisModel") == ("NotOfThisModel", "NotOfThisModel", None)
    assert "message" in service.error_members("ResourceNotFound")
    assert service.error_members("NotOfThisModel") == frozenset()
