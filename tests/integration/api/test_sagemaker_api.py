"""SageMaker's control plane as unmodified boto3 sees it; the test plays the reconcilers."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, WaiterError

from tests.fixtures.awsapi import ACCOUNT, INSTANCE_TYPES, REGION, Served, serving
from zeropull.api import create_api_app
from zeropull.api.keys import create_key, ensure_default_key
from zeropull.api.sagemaker import EndpointHooks
from zeropull.errors import Conflict
from zeropull.resources.accounts import Account
from zeropull.resources.endpoints import (
    DeployedImage,
    Deployment,
    Endpoint,
    EndpointStatus,
    VariantPhase,
    VariantStatus,
    endpoint_key,
)
from zeropull.statestore import Store

ROLE = "arn:aws:iam::000000000000:role/service-role"
IMAGE = "127.0.0.1:5000/team/server:1"


def arn(kind: str, name: str) -> str:
    return f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:{kind}/{name}"


def make_model(sagemaker: Any, name: str = "m1", **container: Any) -> None:
    sagemaker.create_model(
        ModelName=name,
        PrimaryContainer={"Image": IMAGE, "Environment": {"A": "1"}, **container},
        ExecutionRoleArn=ROLE,
    )


def variant(**changes: Any) -> dict[str, Any]:
    return {
        "VariantName": "v1",
        "ModelName": "m1",
        "InstanceType": "ml.m5.large",
        "InitialInstanceCount": 2,
        **changes,
    }


def make_config(sagemaker: Any, name: str = "c1", **changes: Any) -> None:
    sagemaker.create_endpoint_config(
        EndpointConfigName=name, ProductionVariants=[variant(**changes)]
    )


def make_endpoint(served: Served, sagemaker: Any, name: str = "ep") -> None:
    """A model, a config and an endpoint that is in service."""
    make_model(sagemaker)
    make_config(sagemaker)
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName="c1")
    settle(served, name)


def settle(served: Served, name: str) -> None:
    """What reconcilers do when everything went well."""

    def change(endpoint: Endpoint) -> Endpoint:
        wanted = endpoint.newest
        assert wanted is not None
        variants = tuple(
            replace(v, current_instances=v.desired_instances, current_weight=v.desired_weight)
            for v in wanted.variants
        )
        return replace(
            endpoint,
            status=EndpointStatus.IN_SERVICE,
            current=replace(wanted, variants=variants),
            pending=None,
        )

    served.store.update(Endpoint, endpoint_key(ACCOUNT, name), change)


def set_status(served: Served, name: str, status: EndpointStatus, reason: str = "") -> None:
    served.store.update(
        Endpoint,
        endpoint_key(ACCOUNT, name),
        lambda e: replace(e, status=status, failure_reason=reason),
    )


def refusal(call: Any, **arguments: Any) -> tuple[str, str, int]:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    answer = caught.value.response
    return (
        answer["Error"]["Code"],
        answer["Error"]["Message"],
        answer["ResponseMetadata"]["HTTPStatusCode"],
    )


# --------------------------------------------------------------------------------------- models


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


# ------------------------------------------------------------------------------------- configs


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


# ----------------------------------------------------------------------------------- endpoints


def test_an_endpoint_lives_from_creating_to_gone(served: Served, sagemaker: Any) -> None:
    make_model(sagemaker)
    make_config(sagemaker)
    created = sagemaker.create_endpoint(
        EndpointName="Ep", EndpointConfigName="c1", Tags=[{"Key": "a", "Value": "b"}]
    )
    assert created["EndpointArn"] == arn("endpoint", "Ep")
    described = sagemaker.describe_endpoint(EndpointName="Ep")
    assert described["EndpointStatus"] == "Creating"
    assert described["EndpointConfigName"] == "c1"
    assert "ProductionVariants" not in described
    assert "FailureReason" not in described
    pending = described["PendingDeploymentSummary"]["ProductionVariants"][0]
    assert pending["InstanceType"] == "ml.m5.large"
    assert (pending["DesiredInstanceCount"], pending["CurrentInstanceCount"]) == (2, 0)

    in_progress = f'Cannot update in-progress endpoint "{arn("endpoint", "Ep")}".'
    assert refusal(sagemaker.delete_endpoint, EndpointName="Ep")[1] == in_progress
    assert (
        refusal(sagemaker.update_endpoint, EndpointName="Ep", EndpointConfigName="c1")[1]
        == in_progress
    )
    assert refusal(sagemaker.create_endpoint, EndpointName="EP", EndpointConfigName="c1")[1] == (
        f'Cannot create already existing endpoint "{arn("endpoint", "Ep")}".'
    )

    settle(served, "Ep")
    described = sagemaker.describe_endpoint(EndpointName="Ep")
    first_uid = served.store.require(Endpoint, endpoint_key(ACCOUNT, "Ep")).document.uid
    assert described["EndpointStatus"] == "InService"
    assert "PendingDeploymentSummary" not in described
    assert described["ProductionVariants"][0]["CurrentInstanceCount"] == 2
    assert "InstanceType" not in described["ProductionVariants"][0]

    sagemaker.delete_endpoint(EndpointName="Ep")
    assert sagemaker.describe_endpoint(EndpointName="Ep")["EndpointStatus"] == "Deleting"
    served.store.delete(Endpoint, endpoint_key(ACCOUNT, "Ep"))
    assert refusal(sagemaker.describe_endpoint, EndpointName="Ep") == (
        "ValidationException",
        f'Could not find endpoint "{arn("endpoint", "Ep")}".',
        400,
    )
    sagemaker.create_endpoint(EndpointName="Ep", EndpointConfigName="c1")
    stored = served.store.require(Endpoint, endpoint_key(ACCOUNT, "Ep")).document
    assert stored.uid != first_uid
    assert sagemaker.list_tags(ResourceArn=stored.arn)["Tags"] == []


def test_a_deployment_is_a_snapshot_that_outlives_config_and_model(
    served: Served, sagemaker: Any
) -> None:
    make_model(sagemaker, ModelDataUrl="s3://bucket/model.tar.gz")
    make_config(sagemaker)
    sagemaker.create_endpoint(EndpointName="ep", EndpointConfigName="c1")
    sagemaker.delete_endpoint_config(EndpointConfigName="c1")
    sagemaker.delete_model(ModelName="m1")
    endpoint = served.store.require(Endpoint, endpoint_key(ACCOUNT, "ep")).document
    assert endpoint.pending is not None
    container = endpoint.pending.variants[0].containers[0]
    assert container.image == IMAGE
    assert container.environment == {"A": "1"}
    assert container.sources[0].url == "s3://bucket/model.tar.gz"
    assert container.sources[0].compression == "gzip"
    settle(served, "ep")
    assert sagemaker.describe_endpoint(EndpointName="ep")["EndpointConfigName"] == "c1"


def test_the_resolved_image_and_the_variant_status_are_shown(
    served: Served, sagemaker: Any
) -> None:
    make_endpoint(served, sagemaker)
    digest = "sha256:" + "a" * 64

    def change(endpoint: Endpoint) -> Endpoint:
        assert endpoint.current is not None
        variants = tuple(
            replace(
                v,
                images=(DeployedImage(IMAGE, digest, 1000.5),),
                statuses=(VariantStatus(VariantPhase.BAKING, "waits", 1001.0),),
            )
            for v in endpoint.current.variants
        )
        return replace(endpoint, current=replace(endpoint.current, variants=variants))

    served.store.update(Endpoint, endpoint_key(ACCOUNT, "ep"), change)
    shown = sagemaker.describe_endpoint(EndpointName="ep")["ProductionVariants"][0]
    image = shown["DeployedImages"][0]
    assert image["SpecifiedImage"] == IMAGE
    assert image["ResolvedImage"] == f"127.0.0.1:5000/team/server@{digest}"
    assert image["ResolutionTime"].timestamp() == 1000.5
    assert shown["VariantStatus"][0]["Status"] == "Baking"


def test_create_endpoint_needs_its_config_and_models(sagemaker: Any) -> None:
    make_model(sagemaker)
    make_config(sagemaker)
    assert refusal(sagemaker.create_endpoint, EndpointName="ep", EndpointConfigName="none")[1] == (
        f'Could not find endpoint configuration "{arn("endpoint-config", "none")}".'
    )
    sagemaker.delete_model(ModelName="m1")
    assert refusal(sagemaker.create_endpoint, EndpointName="ep", EndpointConfigName="c1")[1] == (
        f'Could not find model "{arn("model", "m1")}".'
    )
    assert sagemaker.list_endpoints()["Endpoints"] == []


def test_an_update_shows_old_and_new_until_it_is_done(served: Served, sagemaker: Any) -> None:
    make_endpoint(served, sagemaker)
    make_config(sagemaker, "c2", InstanceType="ml.g5.xlarge", InitialInstanceCount=1)
    sagemaker.update_endpoint(EndpointName="ep", EndpointConfigName="c2")
    described = sagemaker.describe_endpoint(EndpointName="ep")
    assert described["EndpointStatus"] == "Updating"
    assert described["EndpointConfigName"] == "c1"
    assert described["ProductionVariants"][0]["CurrentInstanceCount"] == 2
    summary = described["PendingDeploymentSummary"]
    assert summary["EndpointConfigName"] == "c2"
    assert summary["ProductionVariants"][0]["InstanceType"] == "ml.g5.xlarge"
    settle(served, "ep")
    described = sagemaker.describe_endpoint(EndpointName="ep")
    assert described["EndpointConfigName"] == "c2"
    assert described["ProductionVariants"][0]["CurrentInstanceCount"] == 1


@pytest.mark.parametrize(
    ("excluded", "count", "weight"),
    [([], 5, 3.0), (["DesiredInstanceCount"], 2, 3.0), (["DesiredWeight"], 5, 1.0)],
)
def test_retained_properties_come_from_the_running_deployment(
    served: Served, sagemaker: Any, excluded: list[str], count: int, weight: float
) -> None:
    make_endpoint(served, sagemaker)
    sagemaker.update_endpoint_weights_and_capacities(
        EndpointName="ep",
        DesiredWeightsAndCapacities=[
            {"VariantName": "v1", "DesiredInstanceCount": 5, "DesiredWeight": 3.0}
        ],
    )
    settle(served, "ep")
    sagemaker.update_endpoint(
        EndpointName="ep",
        EndpointConfigName="c1",
        RetainAllVariantProperties=True,
        ExcludeRetainedVariantProperties=[{"VariantPropertyType": name} for name in excluded],
    )
    pending = sagemaker.describe_endpoint(EndpointName="ep")["PendingDeploymentSummary"]
    shown = pending["ProductionVariants"][0]
    assert (shown["DesiredInstanceCount"], shown["DesiredWeight"]) == (count, weight)


def test_weights_and_capacities_update_in_place(served: Served, sagemaker: Any) -> None:
    make_endpoint(served, sagemaker)
    sagemaker.update_endpoint_weights_and_capacities(
        EndpointName="ep",
        DesiredWeightsAndCapacities=[{"VariantName": "v1", "DesiredInstanceCount": 3}],
    )
    described = sagemaker.describe_endpoint(EndpointName="ep")
    assert described["EndpointStatus"] == "Updating"
    assert "PendingDeploymentSummary" not in described
    shown = described["ProductionVariants"][0]
    assert (shown["DesiredInstanceCount"], shown["CurrentInstanceCount"]) == (3, 2)
    call = sagemaker.update_endpoint_weights_and_capacities
    wanted = {"EndpointName": "ep", "DesiredWeightsAndCapacities": [{"VariantName": "v1"}]}
    assert "Cannot update in-progress" in refusal(call, **wanted)[1]
    settle(served, "ep")
    for changes, text in [
        (
            [{"VariantName": "no"}],
            'The variant name(s) "no" is/are not present within endpoint configuration "c1".',
        ),
        (
            [{"VariantName": "v1"}, {"VariantName": "v1"}],
            'The variant name "v1" was non-unique within the request.',
        ),
        ([{"VariantName": "v1", "DesiredInstanceCount": 0}], "must be at least 1"),
        ([{"VariantName": "v1", "DesiredWeight": 0}], "weight above 0"),
    ]:
        message = refusal(call, EndpointName="ep", DesiredWeightsAndCapacities=changes)[1]
        assert text in message


def test_deployment_policies_are_kept_for_the_reconcilers(served: Served, sagemaker: Any) -> None:
    make_endpoint(served, sagemaker)
    canary = {
        "BlueGreenUpdatePolicy": {
            "TrafficRoutingConfiguration": {
                "Type": "CANARY",
                "WaitIntervalInSeconds": 60,
                "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": 25},
            },
            "TerminationWaitInSeconds": 10,
        },
        "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "errors"}]},
    }
    sagemaker.update_endpoint(EndpointName="ep", EndpointConfigName="c1", DeploymentConfig=canary)
    endpoint = served.store.require(Endpoint, endpoint_key(ACCOUNT, "ep")).document
    assert endpoint.pending is not None
    policy = endpoint.pending.policy
    assert policy.blue_green is not None
    assert policy.blue_green.canary is not None
    assert (policy.blue_green.shift, policy.blue_green.canary.value) == ("CANARY", 25)
    assert policy.rollback_alarms == ("errors",)
    assert sagemaker.describe_endpoint(EndpointName="ep")["LastDeploymentConfig"] == canary
    settle(served, "ep")

    rolling = {
        "RollingUpdatePolicy": {
            "MaximumBatchSize": {"Type": "CAPACITY_PERCENT", "Value": 50},
            "WaitIntervalInSeconds": 0,
        }
    }
    sagemaker.update_endpoint(EndpointName="ep", EndpointConfigName="c1", DeploymentConfig=rolling)
    endpoint = served.store.require(Endpoint, endpoint_key(ACCOUNT, "ep")).document
    assert endpoint.pending is not None
    assert endpoint.pending.policy.rolling is not None
    settle(served, "ep")

    call = sagemaker.update_endpoint
    canary["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]["CanarySize"]["Value"] = 60  # type: ignore[index]
    given = {"EndpointName": "ep", "EndpointConfigName": "c1"}
    assert "between 1 and 50" in refusal(call, **given, DeploymentConfig=canary)[1]
    both = {**rolling, "BlueGreenUpdatePolicy": canary["BlueGreenUpdatePolicy"]}
    assert "give one" in refusal(call, **given, DeploymentConfig=both)[1]


def test_a_failed_endpoint_says_why_and_can_only_be_deleted(served: Served, sagemaker: Any) -> None:
    make_endpoint(served, sagemaker)
    set_status(served, "ep", EndpointStatus.FAILED, "x" * 2000)
    described = sagemaker.describe_endpoint(EndpointName="ep")
    assert len(described["FailureReason"]) == 1024
    assert (
        "only be deleted"
        in refusal(sagemaker.update_endpoint, EndpointName="ep", EndpointConfigName="c1")[1]
    )
    sagemaker.delete_endpoint(EndpointName="ep")


def test_the_waiters_of_boto3_work(served: Served, sagemaker: Any) -> None:
    make_model(sagemaker)
    make_config(sagemaker)
    sagemaker.create_endpoint(EndpointName="ep", EndpointConfigName="c1")
    quick = {"Delay": 0, "MaxAttempts": 2000}
    timer = threading.Timer(0.05, settle, (served, "ep"))
    timer.start()
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="ep", WaiterConfig=quick)
    timer.join()
    sagemaker.delete_endpoint(EndpointName="ep")
    gone = threading.Timer(0.05, served.store.delete, (Endpoint, endpoint_key(ACCOUNT, "ep")))
    gone.start()
    sagemaker.get_waiter("endpoint_deleted").wait(EndpointName="ep", WaiterConfig=quick)
    gone.join()
    sagemaker.create_endpoint(EndpointName="ep", EndpointConfigName="c1")
    set_status(served, "ep", EndpointStatus.FAILED)
    with pytest.raises(WaiterError):
        sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="ep", WaiterConfig=quick)


# ------------------------------------------------------------------------------- lists and tags


def test_lists_are_paged_filtered_and_sorted(served: Served, sagemaker: Any) -> None:
    for number in range(25):
        # Within the skew that signatures allow, and far enough apart to be told from each other.
        served.clock = _offset_clock(number)
        make_model(sagemaker, f"model-{number:02}")
    served.clock = _offset_clock(0)
    default = sagemaker.list_models()
    assert [m["ModelName"] for m in default["Models"]] == [
        f"model-{n:02}" for n in range(24, 14, -1)
    ]
    assert default["NextToken"]
    pages = sagemaker.get_paginator("list_models").paginate(
        SortBy="Name", SortOrder="Ascending", PaginationConfig={"PageSize": 7}
    )
    names = [m["ModelName"] for page in pages for m in page["Models"]]
    assert names == [f"model-{n:02}" for n in range(25)]
    assert len(sagemaker.list_models(NameContains="L-1", MaxResults=100)["Models"]) == 10
    middle = sagemaker.describe_model(ModelName="model-10")["CreationTime"]
    after = sagemaker.list_models(CreationTimeAfter=middle, MaxResults=100)["Models"]
    before = sagemaker.list_models(CreationTimeBefore=middle, MaxResults=100)["Models"]
    assert len(after) + len(before) == 25
    for token in ("nonsense", default["NextToken"]):
        assert (
            "NextToken is not valid"
            in refusal(sagemaker.list_models, NextToken=token, SortBy="Name")[1]
        )


def _offset_clock(offset_s: float) -> Any:
    return lambda: time.time() + offset_s


def test_endpoints_are_listed_by_status(served: Served, sagemaker: Any) -> None:
    make_endpoint(served, sagemaker, "one")
    sagemaker.create_endpoint(EndpointName="two", EndpointConfigName="c1")
    listed = sagemaker.list_endpoints(StatusEquals="Creating")["Endpoints"]
    assert [e["EndpointName"] for e in listed] == ["two"]
    by_status = sagemaker.list_endpoints(SortBy="Status", SortOrder="Ascending")["Endpoints"]
    assert [e["EndpointStatus"] for e in by_status] == ["Creating", "InService"]


def test_tags_are_added_listed_and_deleted(sagemaker: Any) -> None:
    make_model(sagemaker)
    resource = arn("model", "m1")
    added = sagemaker.add_tags(
        ResourceArn=resource,
        Tags=[{"Key": f"k{n:02}", "Value": "ä ü"} for n in range(50)],
    )
    assert len(added["Tags"]) == 50
    assert (
        "at most 50"
        in refusal(sagemaker.add_tags, ResourceArn=resource, Tags=[{"Key": "more", "Value": ""}])[1]
    )
    pages = sagemaker.get_paginator("list_tags").paginate(ResourceArn=resource)
    assert sum(len(page["Tags"]) for page in pages) == 50
    sagemaker.delete_tags(ResourceArn=resource, TagKeys=[f"k{n:02}" for n in range(49)])
    assert sagemaker.list_tags(ResourceArn=resource)["Tags"] == [{"Key": "k49", "Value": "ä ü"}]
    assert refusal(sagemaker.list_tags, ResourceArn=arn("endpoint", "no"))[1] == (
        f'Could not find endpoint "{arn("endpoint", "no")}".'
    )
    other = resource.replace(ACCOUNT, "999999999999")
    assert "Could not find model" in refusal(sagemaker.list_tags, ResourceArn=other)[1]
    assert refusal(sagemaker.add_tags, ResourceArn=resource, Tags=[{"Key": "aws:x", "Value": ""}])[
        0
    ] == ("ValidationException")


def test_accounts_do_not_see_each_other(served: Served, sagemaker: Any) -> None:
    make_endpoint(served, sagemaker)
    served.store.put(Account("111111111111", "other", 0.0))
    served.key = create_key(served.store, "111111111111", time.time())
    other = served.client("sagemaker")
    assert other.list_models()["Models"] == []
    assert other.list_endpoint_configs()["EndpointConfigs"] == []
    assert other.list_endpoints()["Endpoints"] == []
    assert "Could not find" in refusal(other.describe_endpoint, EndpointName="ep")[1]
    assert "Could not find" in refusal(other.delete_model, ModelName="m1")[1]
    assert "Could not find" in refusal(other.list_tags, ResourceArn=arn("endpoint", "ep"))[1]
    make_model(other)
    make_config(other)
    other.create_endpoint(EndpointName="ep", EndpointConfigName="c1")
    assert sagemaker.describe_endpoint(EndpointName="ep")["EndpointStatus"] == "InService"


def test_other_services_may_refuse_an_update_and_hear_of_a_deletion(tmp_path: Path) -> None:
    deleted = []

    def refuse(endpoint: Endpoint, deployment: Deployment) -> None:
        raise Conflict(f"{endpoint.name} to {deployment.config_name}: no")

    hooks = EndpointHooks(refuse, lambda endpoint, now_s: deleted.append(endpoint.name))
    with Store.open(tmp_path / "zeropull.db") as store:
        key, _ = ensure_default_key(store, ACCOUNT, time.time())
        app = create_api_app(store, region=REGION, instance_types=INSTANCE_TYPES, hooks=hooks)
        with serving(app) as url:
            state = Served(url, store, key, time.time)
            sagemaker = state.client("sagemaker")
            make_endpoint(state, sagemaker)
            call = sagemaker.update_endpoint
            assert refusal(call, EndpointName="ep", EndpointConfigName="c1")[1] == "ep to c1: no"
            assert sagemaker.describe_endpoint(EndpointName="ep")["EndpointStatus"] == "InService"
            sagemaker.delete_endpoint(EndpointName="ep")
    assert deleted == ["ep"]
