"""Application Auto Scaling with unmodified boto3: targets, activities, and what deletes them."""

from __future__ import annotations

import time
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.fixtures.aws_api import ACCOUNT, REGION, refusal
from tests.integration.api.scaling_clients import (
    RESOURCE,
    SERVICE,
    UNKNOWN_TARGET,
    Clients,
    create_config,
    settle,
)
from zeropull.resources.scaling import ScalingActivity


def test_a_target_is_registered_changed_and_deregistered(clients: Clients) -> None:
    arn = clients.register()
    assert arn.startswith(f"arn:aws:application-autoscaling:{REGION}:{ACCOUNT}:scalable-target/")
    again = clients.autoscaling.register_scalable_target(
        **RESOURCE, MaxCapacity=9, SuspendedState={"DynamicScalingOutSuspended": True}
    )
    assert again["ScalableTargetARN"] == arn
    found = clients.autoscaling.describe_scalable_targets(**SERVICE)["ScalableTargets"]
    assert len(found) == 1
    assert (found[0]["MinCapacity"], found[0]["MaxCapacity"]) == (1, 9)
    assert found[0]["SuspendedState"] == {
        "DynamicScalingInSuspended": False,
        "DynamicScalingOutSuspended": True,
        "ScheduledScalingSuspended": False,
    }
    assert found[0]["RoleARN"].endswith("ForApplicationAutoScaling_SageMakerEndpoint")
    assert found[0]["ScalableTargetARN"] == arn
    assert abs(found[0]["CreationTime"].timestamp() - time.time()) < 60
    clients.autoscaling.deregister_scalable_target(**RESOURCE)
    assert clients.autoscaling.describe_scalable_targets(**SERVICE)["ScalableTargets"] == []
    refused = refusal(clients.autoscaling.deregister_scalable_target, **RESOURCE)
    assert refused == ("ObjectNotFoundException", UNKNOWN_TARGET, 400)


def test_a_target_is_changed_by_what_is_given(clients: Clients) -> None:
    def changed(**change: Any) -> dict[str, Any]:
        clients.autoscaling.register_scalable_target(**RESOURCE, **change)
        found = clients.autoscaling.describe_scalable_targets(**SERVICE)["ScalableTargets"][0]
        return dict(found["SuspendedState"]) | {
            "bounds": (found["MinCapacity"], found["MaxCapacity"])
        }

    clients.register(SuspendedState={"ScheduledScalingSuspended": True})
    changed(SuspendedState={"DynamicScalingInSuspended": True})
    changed(MinCapacity=2)
    assert changed(SuspendedState={"DynamicScalingOutSuspended": True}, MaxCapacity=7) == {
        "DynamicScalingInSuspended": True,
        "DynamicScalingOutSuspended": True,
        "ScheduledScalingSuspended": True,
        "bounds": (2, 7),
    }
    assert changed(SuspendedState={"DynamicScalingInSuspended": False})["bounds"] == (2, 7)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"MinCapacity": 5, "MaxCapacity": 4}, "cannot be less than minimum capacity 5"),
        ({"MinCapacity": 0}, "MinCapacity 0 is below 1"),
        ({"MinCapacity": -2, "MaxCapacity": -1}, "MinCapacity -2 is below 1"),
        ({"ResourceId": "endpoint/ep/variant/v9"}, "no variant 'v9' of an endpoint 'ep'"),
        ({"ResourceId": "endpoint/none/variant/v1"}, "no variant 'v1' of an endpoint 'none'"),
        ({"ResourceId": "endpoint/ep"}, "Unsupported resource ID 'endpoint/ep'"),
        ({"ServiceNamespace": "ecs"}, "'ecs' is not served here"),
        ({"ScalableDimension": "ecs:service:DesiredCount"}, "is not served here"),
        (
            {"ScalableDimension": "sagemaker:variant:DesiredProvisionedConcurrency"},
            "is not served here",
        ),
    ],
)
def test_what_cannot_be_scaled_is_not_registered(
    clients: Clients, change: dict[str, Any], text: str
) -> None:
    arguments = RESOURCE | {"MinCapacity": 1, "MaxCapacity": 4} | change
    code, message, status = refusal(clients.autoscaling.register_scalable_target, **arguments)
    assert (code, status) == ("ValidationException", 400)
    assert text in message


def test_the_first_registration_needs_both_bounds(clients: Clients) -> None:
    call = clients.autoscaling.register_scalable_target
    assert "required" in refusal(call, **RESOURCE, MinCapacity=1)[1]
    clients.register()
    assert "cannot be less" in refusal(call, **RESOURCE, MinCapacity=5)[1]


def test_targets_come_in_pages_and_by_filter(clients: Clients) -> None:
    clients.register()
    clients.register(ResourceId="endpoint/ep/variant/v2")
    pages = list(
        clients.autoscaling.get_paginator("describe_scalable_targets").paginate(
            **SERVICE, PaginationConfig={"PageSize": 1}
        )
    )
    ids = [target["ResourceId"] for page in pages for target in page["ScalableTargets"]]
    assert (len(pages), ids) == (2, ["endpoint/ep/variant/v1", "endpoint/ep/variant/v2"])
    found = clients.autoscaling.describe_scalable_targets(
        **SERVICE, ResourceIds=[ids[1]], ScalableDimension=RESOURCE["ScalableDimension"]
    )
    assert [target["ResourceId"] for target in found["ScalableTargets"]] == ids[1:]
    describe = clients.autoscaling.describe_scalable_targets
    only_dimension = SERVICE | {"ScalableDimension": RESOURCE["ScalableDimension"]}
    assert refusal(describe, **only_dimension)[0] == "ValidationException"
    code, message, _ = refusal(describe, **SERVICE, NextToken="never given")
    assert code == "InvalidNextTokenException", message


def test_tags_are_kept_with_the_target(clients: Clients) -> None:
    arn = clients.register(Tags={"zeropull:scaling": "fast"})
    autoscaling = clients.autoscaling
    autoscaling.tag_resource(ResourceARN=arn, Tags={"team": "a"})
    assert autoscaling.list_tags_for_resource(ResourceARN=arn)["Tags"] == {
        "zeropull:scaling": "fast",
        "team": "a",
    }
    autoscaling.untag_resource(ResourceARN=arn, TagKeys=["team", "never was"])
    assert autoscaling.list_tags_for_resource(ResourceARN=arn)["Tags"] == {
        "zeropull:scaling": "fast"
    }
    too_many = {f"k{number}": "" for number in range(50)}
    assert refusal(autoscaling.tag_resource, ResourceARN=arn, Tags=too_many)[0] == (
        "TooManyTagsException"
    )
    with pytest.raises(autoscaling.exceptions.ResourceNotFoundException):
        autoscaling.list_tags_for_resource(ResourceARN=arn[:-4] + "0000")


def test_activities_are_newest_first_and_not_scaled_ones_on_demand(clients: Clients) -> None:
    clients.register()
    now_s = time.time()
    for number in range(52):
        clients.served.store.put(
            ScalingActivity(
                activity_id=f"a{number:02}", account=ACCOUNT, resource_id=RESOURCE["ResourceId"],
                dimension=RESOURCE["ScalableDimension"], description=f"number {number}",
                cause="a test", began_s=now_s - 100 + number, status="Successful",
            )
        )  # fmt: skip
    clients.served.store.put(
        ScalingActivity(
            activity_id="b", account=ACCOUNT, resource_id=RESOURCE["ResourceId"],
            dimension=RESOURCE["ScalableDimension"], description="nothing", cause="a test",
            began_s=now_s, status="Failed",
            not_scaled=({"Code": "AlreadyAtMaxCapacity", "MaxCapacity": 4},),
        )
    )  # fmt: skip
    describe = clients.autoscaling.get_paginator("describe_scaling_activities")
    pages = [page["ScalingActivities"] for page in describe.paginate(**SERVICE)]
    assert [len(page) for page in pages] == [50, 2]
    assert pages[0][0]["Description"] == "number 51"
    newest = clients.autoscaling.describe_scaling_activities(
        **RESOURCE, IncludeNotScaledActivities=True
    )["ScalingActivities"][0]
    assert newest["NotScaledReasons"] == [{"Code": "AlreadyAtMaxCapacity", "MaxCapacity": 4}]


def test_deregistering_removes_policies_alarms_and_schedules(clients: Clients) -> None:
    clients.register()
    clients.put_policy()
    clients.put_action()
    clients.autoscaling.deregister_scalable_target(**RESOURCE)
    assert clients.policies() == []
    assert clients.alarm_names() == []
    assert clients.autoscaling.describe_scheduled_actions(**SERVICE)["ScheduledActions"] == []


def test_deleting_the_endpoint_deregisters_its_targets(clients: Clients) -> None:
    clients.register()
    clients.put_policy()
    clients.sagemaker.delete_endpoint(EndpointName="ep")
    assert clients.autoscaling.describe_scalable_targets(**SERVICE)["ScalableTargets"] == []
    assert clients.alarm_names() == []


def test_an_update_may_neither_remove_a_scaled_variant_nor_change_its_type(
    clients: Clients,
) -> None:
    clients.register(ResourceId="endpoint/ep/variant/v2")
    create_config(clients, "without", "v1")
    create_config(clients, "bigger", "v1", "v2", instance_type="ml.g5.xlarge")
    create_config(clients, "same", "v1", "v2")
    update = clients.sagemaker.update_endpoint
    for config in ("without", "bigger"):
        code, message, _ = refusal(update, EndpointName="ep", EndpointConfigName=config)
        assert code == "ValidationException"
        assert 'The variant "v2" is a scalable target' in message
    update(EndpointName="ep", EndpointConfigName="same")
    settle(clients)
    clients.autoscaling.deregister_scalable_target(
        **(RESOURCE | {"ResourceId": "endpoint/ep/variant/v2"})
    )
    update(EndpointName="ep", EndpointConfigName="without")


@pytest.mark.parametrize("namespace", ["ecs", "dynamodb", "lambda", "custom-resource"])
def test_nothing_of_other_services_is_registered(clients: Clients, namespace: str) -> None:
    clients.register()
    client = clients.autoscaling
    for describe, list_name in [
        (client.describe_scalable_targets, "ScalableTargets"),
        (client.describe_scaling_policies, "ScalingPolicies"),
        (client.describe_scheduled_actions, "ScheduledActions"),
        (client.describe_scaling_activities, "ScalingActivities"),
    ]:
        assert describe(ServiceNamespace=namespace)[list_name] == []
    with pytest.raises(ClientError, match="not served here"):
        client.register_scalable_target(
            ServiceNamespace=namespace,
            ResourceId="service/a/b",
            ScalableDimension="ecs:service:DesiredCount",
            MinCapacity=1,
            MaxCapacity=2,
        )
