"""The operations on inference components, asked by unmodified boto3; no reconciler runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.fixtures.aws_api import ACCOUNT, INSTANCE_TYPES, REGION, Served, serving
from zeropull.api import create_api_app
from zeropull.api.applicationautoscaling import autoscaling_table
from zeropull.api.keys import ensure_default_key
from zeropull.placement.capacity import Shape
from zeropull.resources.components import (
    ComponentStatus,
    InferenceComponent,
    component_key,
)
from zeropull.resources.endpoints import DeployedImage, Endpoint, EndpointStatus, endpoint_key
from zeropull.statestore import Store

ROLE = f"arn:aws:iam::{ACCOUNT}:role/test"
ARN = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:inference-component"
VARIANT = {
    "VariantName": "main",
    "InstanceType": "ml.g5.xlarge",
    "InitialInstanceCount": 1,
    "ManagedInstanceScaling": {"Status": "ENABLED", "MinInstanceCount": 0, "MaxInstanceCount": 2},
}
NEEDS = {"MinMemoryRequiredInMb": 1024, "NumberOfAcceleratorDevicesRequired": 1}
SPECIFICATION = {
    "Container": {
        "Image": "registry/model:1",
        "ArtifactUrl": "s3://models/m.tar.gz",
        "Environment": {"A": "b"},
    },
    "ComputeResourceRequirements": NEEDS,
    "DataCacheConfig": {"EnableCaching": True},
    "SchedulingConfig": {
        "PlacementStrategy": "BINPACK",
        "AvailabilityZoneBalance": {"EnforcementMode": "PERMISSIVE"},
    },
}


def shape_of(instance_type: str) -> Shape:
    return Shape(instance_type, 4000, 8 << 30, ("0",))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Store.open(tmp_path / "zeropull.db") as store:
        key, _ = ensure_default_key(store, ACCOUNT, time.time())
        state = Served("", store, key, time.time)
        app = create_api_app(
            store,
            region=REGION,
            instance_types=INSTANCE_TYPES,
            with_components=True,
            component_shape=shape_of,
            tables=[autoscaling_table(store)],
            clock=lambda: state.clock(),
        )
        with serving(app) as url:
            state.url = url
            yield state


@pytest.fixture
def sagemaker(served: Served) -> Any:
    """With the component endpoint "shared" in service."""
    client = served.client("sagemaker")
    client.create_endpoint_config(
        EndpointConfigName="shared", ExecutionRoleArn=ROLE, ProductionVariants=[VARIANT]
    )
    client.create_endpoint(EndpointName="shared", EndpointConfigName="shared")
    served.store.update(
        Endpoint,
        endpoint_key(ACCOUNT, "shared"),
        lambda e: replace(e, status=EndpointStatus.IN_SERVICE, current=e.pending, pending=None),
    )
    return client


def create(sagemaker: Any, name: str = "one", **changes: Any) -> Any:
    members: dict[str, Any] = {
        "InferenceComponentName": name,
        "EndpointName": "shared",
        "VariantName": "main",
        "Specification": SPECIFICATION,
        "RuntimeConfig": {"CopyCount": 1},
    }
    members |= changes
    return sagemaker.create_inference_component(
        **{key: value for key, value in members.items() if value is not None}
    )


def settle(served: Served, name: str = "one", **changes: Any) -> None:
    """As the reconcilers would have it."""
    changes = {"status": ComponentStatus.IN_SERVICE, **changes}
    served.store.update(
        InferenceComponent, component_key(ACCOUNT, name), lambda c: replace(c, **changes)
    )


def test_a_component_is_described_as_it_was_created(served: Served, sagemaker: Any) -> None:
    assert create(sagemaker)["InferenceComponentArn"] == f"{ARN}/one"
    found = sagemaker.describe_inference_component(InferenceComponentName="one")
    assert found["InferenceComponentStatus"] == "Creating"
    assert found["EndpointArn"].endswith(":endpoint/shared")
    assert found["VariantName"] == "main"
    assert found["RuntimeConfig"] == {"DesiredCopyCount": 1, "CurrentCopyCount": 0}
    specification = found["Specification"]
    assert specification["ComputeResourceRequirements"] == NEEDS
    assert specification["DataCacheConfig"] == {"EnableCaching": True}
    assert specification["SchedulingConfig"] == SPECIFICATION["SchedulingConfig"]
    assert specification["Container"] == {
        "ArtifactUrl": "s3://models/m.tar.gz", "Environment": {"A": "b"},
    }  # fmt: skip
    assert "LastDeploymentConfig" not in found
    stored = served.store.require(InferenceComponent, component_key(ACCOUNT, "one")).document
    image = DeployedImage("registry/model:1", "sha256:" + "a" * 64, 1.0)
    settle(served, current=replace(stored.current, image=image), current_copies=1)
    found = sagemaker.describe_inference_component(InferenceComponentName="one")
    deployed = found["Specification"]["Container"]["DeployedImage"]
    assert deployed["ResolvedImage"] == "registry/model@sha256:" + "a" * 64
    assert found["RuntimeConfig"]["CurrentCopyCount"] == 1


def test_a_component_may_name_a_model(served: Served, sagemaker: Any) -> None:
    sagemaker.create_model(
        ModelName="m", PrimaryContainer={"Image": "registry/named:1"}, ExecutionRoleArn=ROLE
    )
    create(sagemaker, Specification={"ModelName": "m", "ComputeResourceRequirements": NEEDS})
    stored = served.store.require(InferenceComponent, component_key(ACCOUNT, "one")).document
    assert stored.current.spec.container.image == "registry/named:1"
    found = sagemaker.describe_inference_component(InferenceComponentName="one")
    assert found["Specification"]["ModelName"] == "m"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"EndpointName": "nowhere"}, "Could not find endpoint"),
        ({"VariantName": "other"}, 'variant name "other" is not present'),
        ({"RuntimeConfig": {"CopyCount": 0}}, "copy count an integer larger than 0"),
        ({"RuntimeConfig": None}, "copy count an integer larger than 0"),
        ({"Specification": None}, "needs a Specification"),
        (
            {"Specification": {"ModelName": "none", "ComputeResourceRequirements": NEEDS}},
            "Could not find model",
        ),
        (
            {"Specification": {**SPECIFICATION, "ModelName": "m"}},
            "either a ModelName or a Container",
        ),
        (
            {"Specification": {"Container": {"Image": "a:1"}}},
            "needs ComputeResourceRequirements",
        ),
        (
            {"Specification": {**SPECIFICATION, "BaseInferenceComponentName": "base"}},
            "BaseInferenceComponentName",
        ),
        (
            {
                "Specification": None,
                "Specifications": [{"InstanceType": "ml.g5.xlarge", **SPECIFICATION}],
            },
            "Specifications",
        ),
    ],
)
def test_what_cannot_be_created_is_refused(
    sagemaker: Any, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(ClientError) as refused:
        create(sagemaker, **changes)
    assert refused.value.response["Error"]["Code"] == "ValidationException"
    assert text in refused.value.response["Error"]["Message"]


@pytest.mark.parametrize(
    ("needs", "text"),
    [
        ({"MinMemoryRequiredInMb": 9000}, "9000 MiB of 8192 MiB schedulable memory"),
        ({**NEEDS, "NumberOfAcceleratorDevicesRequired": 2}, "2 of 1 accelerators"),
        ({**NEEDS, "NumberOfCpuCoresRequired": 4.5}, "4.5 of 4 CPU cores"),
        ({**NEEDS, "NumberOfAcceleratorDevicesRequired": 1.5}, "whole number"),
        ({**NEEDS, "MaxMemoryRequiredInMb": 512}, "less than MinMemoryRequiredInMb"),
    ],
)
def test_what_never_fits_is_refused_with_the_arithmetic(
    sagemaker: Any, needs: dict[str, Any], text: str
) -> None:
    with pytest.raises(ClientError, match=text):
        create(sagemaker, Specification={**SPECIFICATION, "ComputeResourceRequirements": needs})


def test_components_need_an_endpoint_without_models_that_is_in_service(
    served: Served, sagemaker: Any
) -> None:
    served.store.update(
        Endpoint,
        endpoint_key(ACCOUNT, "shared"),
        lambda e: replace(e, status=EndpointStatus.UPDATING),
    )
    with pytest.raises(ClientError, match="must be InService"):
        create(sagemaker)


def test_a_name_is_taken_until_the_component_is_gone(served: Served, sagemaker: Any) -> None:
    create(sagemaker)
    with pytest.raises(ClientError, match="Cannot create already existing inference component"):
        create(sagemaker)


def test_what_is_under_way_is_neither_updated_nor_deleted(served: Served, sagemaker: Any) -> None:
    create(sagemaker)
    runtime = {"InferenceComponentName": "one", "DesiredRuntimeConfig": {"CopyCount": 3}}
    calls: list[Callable[[], Any]] = [
        lambda: sagemaker.delete_inference_component(InferenceComponentName="one"),
        lambda: sagemaker.update_inference_component_runtime_config(**runtime),
    ]
    for call in calls:
        with pytest.raises(ClientError, match="while it is in state CREATE_IN_PROGRESS"):
            call()
    settle(served)
    sagemaker.update_inference_component_runtime_config(**runtime)
    found = sagemaker.describe_inference_component(InferenceComponentName="one")
    assert found["InferenceComponentStatus"] == "Updating"
    assert found["RuntimeConfig"]["DesiredCopyCount"] == 3
    with pytest.raises(ClientError, match="while it is in state UPDATE_RC_IN_PROGRESS"):
        sagemaker.update_inference_component_runtime_config(**runtime)
    settle(served)
    sagemaker.delete_inference_component(InferenceComponentName="one")
    with pytest.raises(ClientError, match="DELETE_IN_PROGRESS"):
        sagemaker.delete_inference_component(InferenceComponentName="one")


def test_zero_copies_come_by_the_runtime_config(served: Served, sagemaker: Any) -> None:
    create(sagemaker)
    settle(served)
    sagemaker.update_inference_component_runtime_config(
        InferenceComponentName="one", DesiredRuntimeConfig={"CopyCount": 0}
    )
    found = sagemaker.describe_inference_component(InferenceComponentName="one")
    assert found["RuntimeConfig"]["DesiredCopyCount"] == 0


def test_an_update_makes_a_pending_version(served: Served, sagemaker: Any) -> None:
    create(sagemaker)
    settle(served)
    with pytest.raises(ClientError, match="needs a Specification or a RuntimeConfig"):
        sagemaker.update_inference_component(InferenceComponentName="one")
    rolling = {
        "RollingUpdatePolicy": {
            "MaximumBatchSize": {"Type": "CAPACITY_PERCENT", "Value": 50},
            "WaitIntervalInSeconds": 5,
        }
    }
    changed = {**SPECIFICATION, "Container": {"Image": "registry/model:2"}}
    sagemaker.update_inference_component(
        InferenceComponentName="one", Specification=changed, DeploymentConfig=rolling
    )
    found = sagemaker.describe_inference_component(InferenceComponentName="one")
    assert found["InferenceComponentStatus"] == "Updating"
    assert found["LastDeploymentConfig"] == rolling
    assert found["Specification"]["Container"]["ArtifactUrl"]  # the old one still serves
    stored = served.store.require(InferenceComponent, component_key(ACCOUNT, "one")).document
    assert stored.pending is not None
    assert stored.pending.spec.container.image == "registry/model:2"


def test_a_failed_component_is_mended_by_an_update_or_deleted(
    served: Served, sagemaker: Any
) -> None:
    create(sagemaker)
    settle(served, status=ComponentStatus.FAILED, failure_reason="no such image")
    found = sagemaker.describe_inference_component(InferenceComponentName="one")
    assert found["FailureReason"] == "no such image"
    sagemaker.update_inference_component(InferenceComponentName="one", Specification=SPECIFICATION)
    found = sagemaker.describe_inference_component(InferenceComponentName="one")
    assert found["InferenceComponentStatus"] == "Creating"
    settle(served, status=ComponentStatus.FAILED)
    sagemaker.delete_inference_component(InferenceComponentName="one")


def test_components_are_listed_by_endpoint_and_status(served: Served, sagemaker: Any) -> None:
    for name in ("one", "two", "three"):
        create(sagemaker, name)
    settle(served, "two")
    for moment, name in enumerate(("two", "three", "one")):
        served.store.update(
            InferenceComponent,
            component_key(ACCOUNT, name),
            lambda c, at=1000.0 + moment: replace(c, created_s=at, modified_s=at + 100),  # type: ignore[misc]
        )

    def names(**filters: Any) -> list[str]:
        order = {"SortBy": "Name", "SortOrder": "Ascending"} | filters
        pages = sagemaker.get_paginator("list_inference_components").paginate(
            PaginationConfig={"PageSize": 2}, **order
        )
        return [c["InferenceComponentName"] for page in pages for c in page["InferenceComponents"]]

    assert names() == ["one", "three", "two"]
    assert names(StatusEquals="InService") == ["two"]
    assert names(EndpointNameEquals="shared", NameContains="t") == ["three", "two"]
    assert names(EndpointNameEquals="other") == []
    assert names(VariantNameEquals="main", StatusEquals="Creating") == ["one", "three"]
    assert names(VariantNameEquals="other") == []
    assert names(CreationTimeAfter=1001) == ["one", "three"]
    assert names(CreationTimeBefore=1001) == ["two"]
    assert names(LastModifiedTimeAfter=1102) == ["one"]
    assert names(LastModifiedTimeBefore=1102) == ["three", "two"]
    assert names(SortBy="CreationTime") == ["two", "three", "one"]
    assert names(SortBy="CreationTime", SortOrder="Descending") == ["one", "three", "two"]
    assert names(SortBy="Status") == ["one", "three", "two"]


def test_components_have_tags(sagemaker: Any) -> None:
    create(sagemaker, Tags=[{"Key": "team", "Value": "a"}])
    assert sagemaker.list_tags(ResourceArn=f"{ARN}/one")["Tags"] == [{"Key": "team", "Value": "a"}]
    sagemaker.add_tags(ResourceArn=f"{ARN}/one", Tags=[{"Key": "more", "Value": "b"}])
    sagemaker.delete_tags(ResourceArn=f"{ARN}/one", TagKeys=["team"])
    assert sagemaker.list_tags(ResourceArn=f"{ARN}/one")["Tags"] == [{"Key": "more", "Value": "b"}]


def test_an_unknown_component_is_not_found(sagemaker: Any) -> None:
    for call in (sagemaker.describe_inference_component, sagemaker.delete_inference_component):
        with pytest.raises(ClientError, match="Could not find inference component") as refused:
            call(InferenceComponentName="none")
        assert refused.value.response["Error"]["Code"] == "ValidationException"


def test_component_configs_need_a_role_and_one_variant(sagemaker: Any) -> None:
    with pytest.raises(ClientError, match="ExecutionRoleArn is required"):
        sagemaker.create_endpoint_config(EndpointConfigName="none", ProductionVariants=[VARIANT])
    with pytest.raises(ClientError, match="has one production variant"):
        sagemaker.create_endpoint_config(
            EndpointConfigName="two",
            ExecutionRoleArn=ROLE,
            ProductionVariants=[VARIANT, {**VARIANT, "VariantName": "second"}],
        )
    bounds = {"Status": "ENABLED", "MinInstanceCount": 3, "MaxInstanceCount": 2}
    with pytest.raises(ClientError, match="MinInstanceCount 3 is greater than MaxInstanceCount 2"):
        sagemaker.create_endpoint_config(
            EndpointConfigName="turned-round",
            ExecutionRoleArn=ROLE,
            ProductionVariants=[{**VARIANT, "ManagedInstanceScaling": bounds}],
        )


def test_deployment_configs_are_refused_where_components_live(
    served: Served, sagemaker: Any
) -> None:
    policy = {"AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "errors"}]}}
    refused = "DeploymentConfig is not supported for an endpoint with inference components"
    with pytest.raises(ClientError, match=refused):
        sagemaker.create_endpoint(
            EndpointName="other", EndpointConfigName="shared", DeploymentConfig=policy
        )
    with pytest.raises(ClientError, match=refused):
        sagemaker.update_endpoint(
            EndpointName="shared", EndpointConfigName="shared", DeploymentConfig=policy
        )
    sagemaker.update_endpoint(
        EndpointName="shared", EndpointConfigName="shared", RetainDeploymentConfig=True
    )


def test_a_component_is_a_scalable_target_from_zero_on(served: Served, sagemaker: Any) -> None:
    create(sagemaker)
    autoscaling = served.client("application-autoscaling")
    resource = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": "inference-component/one",
        "ScalableDimension": "sagemaker:inference-component:DesiredCopyCount",
    }
    autoscaling.register_scalable_target(**resource, MinCapacity=0, MaxCapacity=4)
    for kind in (
        "SageMakerInferenceComponentConcurrentRequestsPerCopyHighResolution",
        "SageMakerInferenceComponentInvocationsPerCopy",
    ):
        answer = autoscaling.put_scaling_policy(
            **resource,
            PolicyName=kind,
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration={
                "TargetValue": 5.0,
                "PredefinedMetricSpecification": {"PredefinedMetricType": kind},
            },
        )
        assert len(answer["Alarms"]) == 2
    settle(served)
    sagemaker.delete_inference_component(InferenceComponentName="one")


def test_an_unknown_component_is_no_scalable_target(served: Served, sagemaker: Any) -> None:
    autoscaling = served.client("application-autoscaling")
    for resource_id in ("inference-component/none", "inference-component/a/b", "endpoint/shared"):
        with pytest.raises(ClientError) as refused:
            autoscaling.register_scalable_target(
                ServiceNamespace="sagemaker",
                ResourceId=resource_id,
                ScalableDimension="sagemaker:inference-component:DesiredCopyCount",
                MinCapacity=0,
                MaxCapacity=4,
            )
        assert refused.value.response["Error"]["Code"] == "ValidationException"
