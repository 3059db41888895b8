"""SageMaker's models and endpoint configs as unmodified boto3 sees them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.fixtures.aws_api import refusal
from tests.integration.api.sagemaker_calls import (
    IMAGE,
    ROLE,
    arn,
    make_config,
    make_model,
    variant,
)


def test_a_model_is_described_as_it_was_created(sagemaker: Any) -> None:
    source = {
        "S3DataSource": {
            "S3Uri": "s3://bucket/prefix/",
            "S3DataType": "S3Prefix",
            "CompressionType": "None",
        }
    }
    created = sagemaker.create_model(
        ModelName="m1",
        PrimaryContainer={"Image": IMAGE, "ModelDataSource": source},
        ExecutionRoleArn=ROLE,
        Tags=[{"Key": "team", "Value": "x"}],
    )
    assert created["ModelArn"] == arn("model", "m1")
    assert created["ResponseMetadata"]["RequestId"]
    described = sagemaker.describe_model(ModelName="m1")
    assert described["PrimaryContainer"] == {"Image": IMAGE, "ModelDataSource": source}
    assert described["ExecutionRoleArn"] == ROLE
    assert "Tags" not in described
    assert abs(described["CreationTime"] - datetime.now(UTC)) < timedelta(seconds=30)
    assert sagemaker.list_tags(ResourceArn=created["ModelArn"])["Tags"] == [
        {"Key": "team", "Value": "x"}
    ]
    sagemaker.delete_model(ModelName="m1")
    assert refusal(sagemaker.describe_model, ModelName="m1") == (
        "ValidationException",
        f'Could not find model "{arn("model", "m1")}".',
        400,
    )


def test_models_that_cannot_be_are_refused(sagemaker: Any) -> None:
    make_model(sagemaker)
    container = {"Image": IMAGE}
    too_much = {f"K{n}": "x" * 1000 for n in range(40)}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"PrimaryContainer": container}, f'already existing model "{arn("model", "m1")}".'),
        ({}, "needs a container"),
        ({"PrimaryContainer": container, "Containers": [container]}, "not both"),
        ({"Containers": [container] * 2}, "one container"),
        ({"PrimaryContainer": {}}, "must have an Image"),
        ({"PrimaryContainer": {**container, "Mode": "MultiModel"}}, "MultiModel"),
        (
            {"PrimaryContainer": {"ModelPackageName": "p"}},
            "PrimaryContainer.ModelPackageName of CreateModel is not supported here",
        ),
        ({"PrimaryContainer": container, "EnableNetworkIsolation": True}, "NetworkIsolation"),
        (
            {"PrimaryContainer": {**container, "Environment": too_much}},
            "at most 32768",
        ),
    ]  # fmt: skip
    for members, text in cases:
        code, message, status = refusal(
            sagemaker.create_model, ModelName="m1", ExecutionRoleArn=ROLE, **members
        )
        assert (code, status) == ("ValidationException", 400)
        assert text in message


def test_constraints_of_the_model_have_the_texts_of_aws(sagemaker: Any) -> None:
    code, message, status = refusal(
        sagemaker.create_endpoint_config,
        EndpointConfigName="bad_name!",
        ProductionVariants=[variant(InstanceType="ml.none.huge", VariantName="x" * 64)],
    )
    assert (code, status) == ("ValidationException", 400)
    assert message.startswith(
        "4 validation errors detected: Value 'bad_name!' at 'endpointConfigName' failed to satisfy "
        "constraint: Member must satisfy regular expression pattern: "
    )
    assert (
        "; Value 'ml.none.huge' at 'productionVariants.1.member.instanceType' failed to satisfy "
        "constraint: Member must satisfy enum value set: [" in message
    )
    assert "ml.mine.large" in message
    assert "'productionVariants.1.member.variantName' failed to satisfy constraint: " in message
    assert "Member must have length less than or equal to 63" in message
    assert (
        "'maxResults' failed to satisfy constraint: Member must have value less than"
        in refusal(sagemaker.list_models, MaxResults=1000)[1]
    )
    assert "enum value set: [Name, CreationTime]" in refusal(sagemaker.list_models, SortBy="x")[1]
    assert (
        "Map keys must satisfy constraint: [Member must satisfy regular"
        in refusal(
            sagemaker.create_model,
            ModelName="m",
            PrimaryContainer={"Image": IMAGE, "Environment": {"1-a": ""}},
        )[1]
    )


def test_a_config_is_described_as_it_was_created(sagemaker: Any) -> None:
    make_model(sagemaker)
    variants = [
        variant(InitialVariantWeight=0.5, ContainerStartupHealthCheckTimeoutInSeconds=61),
        variant(VariantName="v2", RoutingConfig={"RoutingStrategy": "LEAST_OUTSTANDING_REQUESTS"}),
    ]
    created = sagemaker.create_endpoint_config(EndpointConfigName="c1", ProductionVariants=variants)
    described = sagemaker.describe_endpoint_config(EndpointConfigName="c1")
    assert described["ProductionVariants"] == variants
    assert described["EndpointConfigArn"] == created["EndpointConfigArn"]
    assert refusal(
        sagemaker.create_endpoint_config, EndpointConfigName="c1", ProductionVariants=variants
    )[1] == (
        f'Cannot create already existing endpoint configuration "{arn("endpoint-config", "c1")}".'
    )
    sagemaker.delete_endpoint_config(EndpointConfigName="c1")
    text = f'Could not find endpoint configuration "{arn("endpoint-config", "c1")}".'
    for call in (sagemaker.describe_endpoint_config, sagemaker.delete_endpoint_config):
        assert refusal(call, EndpointConfigName="c1") == ("ValidationException", text, 400)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"ModelName": "none"}, f'Could not find model "{arn("model", "none")}".'),
        ({"InstanceType": "ml.p5.48xlarge"}, "is not in the catalog of this fleet"),
        ({"InstanceType": None}, "must have an InstanceType"),
        ({"InitialInstanceCount": None}, "must have an InitialInstanceCount"),
        ({"InitialVariantWeight": 0.0}, "weight above 0"),
        ({"RoutingConfig": {"RoutingStrategy": "KV_AWARE"}}, "KV_AWARE is not supported"),
        (
            {"ManagedInstanceScaling": {"Status": "ENABLED"}},
            "ManagedInstanceScaling is only supported for inference component endpoints.",
        ),
        (
            {"ServerlessConfig": {"MemorySizeInMB": 1024, "MaxConcurrency": 1}},
            "ProductionVariants.ServerlessConfig of CreateEndpointConfig is not supported here",
        ),
        ({"ModelName": None}, "inference components are not supported here"),
    ],
)
def test_configs_that_cannot_be_are_refused(
    sagemaker: Any, changes: dict[str, Any], text: str
) -> None:
    make_model(sagemaker)
    given = {key: value for key, value in variant(**changes).items() if value is not None}
    code, message, _ = refusal(
        sagemaker.create_endpoint_config, EndpointConfigName="c1", ProductionVariants=[given]
    )
    assert code == "ValidationException"
    assert text in message
    assert sagemaker.list_endpoint_configs()["EndpointConfigs"] == []


def test_variant_names_are_unique_and_members_of_aws_only_are_accepted(sagemaker: Any) -> None:
    make_model(sagemaker)
    assert (
        "not unique"
        in refusal(
            sagemaker.create_endpoint_config,
            EndpointConfigName="c1",
            ProductionVariants=[variant(), variant()],
        )[1]
    )
    make_config(sagemaker, InferenceAmiVersion="al2-ami-sagemaker-inference-gpu-2")
