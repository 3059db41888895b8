"""SageMaker's endpoints as unmodified boto3 sees them; the test plays the reconcilers."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import WaiterError

from tests.fixtures.aws_api import ACCOUNT, INSTANCE_TYPES, REGION, Served, refusal, serving
from tests.integration.api.sagemaker_calls import (
    IMAGE,
    arn,
    make_config,
    make_endpoint,
    make_model,
    set_status,
    settle,
)
from zeropull.api import create_api_app
from zeropull.api.keys import ensure_default_key
from zeropull.api.sagemaker import EndpointHooks
from zeropull.errors import Conflict
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
