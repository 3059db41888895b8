"""Application Auto Scaling with unmodified boto3: every operation, its refusals and its pages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ParamValidationError

from tests.fixtures.awsapi import ACCOUNT, INSTANCE_TYPES, REGION, Served, serving
from zeropull.api import create_api_app
from zeropull.api.applicationautoscaling import (
    autoscaling_table,
    let_go_of_endpoint,
    refuse_lost_targets,
)
from zeropull.api.cloudwatch import cloudwatch_table
from zeropull.api.keys import ensure_default_key
from zeropull.api.sagemaker import EndpointHooks
from zeropull.metricstore.store import MetricStore
from zeropull.resources.endpoints import Endpoint, EndpointStatus, endpoint_key
from zeropull.resources.scaling import ScalingActivity
from zeropull.statestore import Store

SESSION = boto3.session.Session()
ROLE = "arn:aws:iam::000000000000:role/service-role"
IMAGE = "127.0.0.1:5000/team/server:1"
RESOURCE = {
    "ServiceNamespace": "sagemaker",
    "ResourceId": "endpoint/ep/variant/v1",
    "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
}
SERVICE = {"ServiceNamespace": "sagemaker"}
CONCURRENCY = "SageMakerVariantConcurrentRequestsPerModelHighResolution"
UNKNOWN_TARGET = (
    "No scalable target found for service namespace: sagemaker, resource ID: "
    "endpoint/ep/variant/v1, scalable dimension: sagemaker:variant:DesiredInstanceCount"
)


@dataclass
class Clients:
    """Three services over one store; a client is made when it is first needed."""

    served: Served

    @cached_property
    def sagemaker(self) -> Any:
        return self._client("sagemaker")

    @cached_property
    def autoscaling(self) -> Any:
        return self._client("application-autoscaling")

    @cached_property
    def cloudwatch(self) -> Any:
        return self._client("cloudwatch")

    def _client(self, service: str) -> Any:
        # One session for all tests: it keeps the services' models, which take long to read.
        return SESSION.client(
            service,
            region_name=REGION,
            endpoint_url=self.served.url,
            aws_access_key_id=self.served.key.access_key_id,
            aws_secret_access_key=self.served.key.secret_access_key,
            config=Config(retries={"total_max_attempts": 1}),
        )

    def register(self, **more: Any) -> str:
        arn = self.autoscaling.register_scalable_target(
            **(RESOURCE | {"MinCapacity": 1, "MaxCapacity": 4} | more)
        )["ScalableTargetARN"]
        return str(arn)

    def put_policy(self, name: str = "track", **config: Any) -> dict[str, Any]:
        answer = self.autoscaling.put_scaling_policy(
            **RESOURCE,
            PolicyName=name,
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration=tracking(**config),
        )
        return dict(answer)

    def policies(self, **filters: Any) -> list[dict[str, Any]]:
        found = self.autoscaling.describe_scaling_policies(**(SERVICE | filters))
        return list(found["ScalingPolicies"])

    def alarm_names(self) -> list[str]:
        return [a["AlarmName"] for a in self.cloudwatch.describe_alarms()["MetricAlarms"]]


def tracking(kind: str = CONCURRENCY, target: float = 5.0, **more: Any) -> dict[str, Any]:
    return {
        "TargetValue": target,
        "PredefinedMetricSpecification": {"PredefinedMetricType": kind},
        **more,
    }


def by_math(expression: dict[str, Any]) -> dict[str, Any]:
    stat = {"Metric": {"Namespace": "own", "MetricName": "queue"}, "Stat": "Sum"}
    queries = [{"Id": "q", "MetricStat": stat, "ReturnData": False}, {"Id": "e", **expression}]
    return {"TargetValue": 1.0, "CustomizedMetricSpecification": {"Metrics": queries}}


def stepping(*steps: tuple[float | None, float | None, int], **more: Any) -> dict[str, Any]:
    adjustments = []
    for lower, upper, adjustment in steps:
        step: dict[str, Any] = {"ScalingAdjustment": adjustment}
        if lower is not None:
            step["MetricIntervalLowerBound"] = lower
        if upper is not None:
            step["MetricIntervalUpperBound"] = upper
        adjustments.append(step)
    return {"AdjustmentType": "ChangeInCapacity", "StepAdjustments": adjustments, **more}


@pytest.fixture
def clients(tmp_path: Path) -> Iterator[Clients]:
    """An endpoint `ep` in service, with the variants `v1` and `v2`."""
    with Store.open(tmp_path / "zeropull.db") as store:
        key, _ = ensure_default_key(store, ACCOUNT, time.time())
        metrics = MetricStore(tmp_path / "metrics.db", check_same_thread=False)
        app = create_api_app(
            store,
            region=REGION,
            instance_types=INSTANCE_TYPES,
            tables=[autoscaling_table(store), cloudwatch_table(store, metrics)],
            hooks=EndpointHooks(
                before_update=partial(refuse_lost_targets, store),
                on_delete=partial(let_go_of_endpoint, store),
            ),
        )
        with serving(app) as url:
            made = Clients(Served(url, store, key, time.time))
            create_endpoint(made)
            yield made
        metrics.close()


def create_endpoint(clients: Clients) -> None:
    clients.sagemaker.create_model(
        ModelName="m1", PrimaryContainer={"Image": IMAGE}, ExecutionRoleArn=ROLE
    )
    create_config(clients, "c1", "v1", "v2")
    clients.sagemaker.create_endpoint(EndpointName="ep", EndpointConfigName="c1")
    settle(clients)


def create_config(
    clients: Clients, name: str, *variants: str, instance_type: str = "ml.m5.large"
) -> None:
    clients.sagemaker.create_endpoint_config(
        EndpointConfigName=name,
        ProductionVariants=[
            {
                "VariantName": variant,
                "ModelName": "m1",
                "InstanceType": instance_type,
                "InitialInstanceCount": 1,
            }
            for variant in variants
        ],
    )


def settle(clients: Clients) -> None:
    """What reconcilers do when everything went well."""

    def change(endpoint: Endpoint) -> Endpoint:
        return replace(
            endpoint, status=EndpointStatus.IN_SERVICE, current=endpoint.newest, pending=None
        )

    clients.served.store.update(Endpoint, endpoint_key(ACCOUNT, "ep"), change)


def refusal(call: Any, **arguments: Any) -> tuple[str, str, int]:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    answer = caught.value.response
    return (
        answer["Error"]["Code"],
        answer["Error"]["Message"],
        answer["ResponseMetadata"]["HTTPStatusCode"],
    )


# ---------------------------------------------------------------------------------------- targets


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


# --------------------------------------------------------------------------------------- policies


def test_target_tracking_comes_with_its_two_alarms(clients: Clients) -> None:
    clients.register()
    answer = clients.put_policy(ScaleInCooldown=60)
    assert answer["PolicyARN"].startswith(f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:scalingPolicy:")
    assert answer["PolicyARN"].endswith(
        ":resource/sagemaker/endpoint/ep/variant/v1:policyName/track"
    )
    names = [alarm["AlarmName"] for alarm in answer["Alarms"]]
    prefix = "TargetTracking-endpoint/ep/variant/v1-Alarm"
    assert [name[: len(prefix) + 4] for name in names] == [f"{prefix}High", f"{prefix}Low-"]
    alarms = {
        alarm["AlarmName"]: alarm
        for alarm in clients.cloudwatch.describe_alarms(AlarmNames=names)["MetricAlarms"]
    }
    high, low = (alarms[name] for name in names)
    assert high["AlarmActions"] == [answer["PolicyARN"]]
    assert (high["MetricName"], high["Statistic"]) == ("ConcurrentRequestsPerModel", "Maximum")
    assert (high["Period"], high["EvaluationPeriods"], high["Threshold"]) == (10, 3, 5.0)
    assert (low["Period"], low["EvaluationPeriods"], low["Threshold"]) == (10, 90, 4.5)
    assert (high["ComparisonOperator"], low["ComparisonOperator"]) == (
        "GreaterThanThreshold", "LessThanThreshold",
    )  # fmt: skip
    described = clients.policies()[0]
    assert described["TargetTrackingScalingPolicyConfiguration"] == tracking(ScaleInCooldown=60)
    assert described["PolicyType"] == "TargetTrackingScaling"
    assert described["Alarms"] == answer["Alarms"]


def test_a_policy_put_again_keeps_its_arn_and_alarms(clients: Clients) -> None:
    clients.register()
    first = clients.put_policy()
    second = clients.put_policy(target=8.0)
    assert (second["PolicyARN"], second["Alarms"]) == (first["PolicyARN"], first["Alarms"])
    alarms = clients.cloudwatch.describe_alarms()["MetricAlarms"]
    assert sorted(alarm["Threshold"] for alarm in alarms) == [7.2, 8.0]


def test_the_standard_metric_is_watched_by_the_minute(clients: Clients) -> None:
    clients.register()
    clients.put_policy(kind="SageMakerVariantInvocationsPerInstance", target=100)
    alarms = clients.cloudwatch.describe_alarms()["MetricAlarms"]
    shape = {(a["Period"], a["EvaluationPeriods"], a["Statistic"], a["Threshold"]) for a in alarms}
    assert shape == {(60, 3, "Sum", 100.0), (60, 15, "Sum", 90.0)}


def test_metric_math_can_be_tracked(clients: Clients) -> None:
    clients.register()
    metric = {"Namespace": "own", "MetricName": "queue"}
    custom = {
        "Metrics": [
            {"Id": "q", "MetricStat": {"Metric": metric, "Stat": "Sum"}, "ReturnData": False},
            {"Id": "per_one", "Expression": "q / 2", "ReturnData": True},
        ]
    }
    config = {"TargetValue": 3.0, "CustomizedMetricSpecification": custom}
    clients.autoscaling.put_scaling_policy(
        **RESOURCE,
        PolicyName="math",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration=config,
    )
    assert clients.policies()[0]["TargetTrackingScalingPolicyConfiguration"] == config
    alarm = clients.cloudwatch.describe_alarms()["MetricAlarms"][0]
    assert alarm["Metrics"][1]["Expression"] == "q / 2"


def test_a_step_policy_has_the_alarms_that_name_it(clients: Clients) -> None:
    clients.register()
    config = stepping((0.0, None, 1), Cooldown=60, MetricAggregationType="Maximum")
    answer = clients.autoscaling.put_scaling_policy(
        **RESOURCE,
        PolicyName="up",
        PolicyType="StepScaling",
        StepScalingPolicyConfiguration=config,
    )
    assert answer["Alarms"] == []
    clients.cloudwatch.put_metric_alarm(
        AlarmName="mine", Namespace="own", MetricName="queue", Statistic="Sum", Period=60,
        EvaluationPeriods=1, Threshold=1, ComparisonOperator="GreaterThanOrEqualToThreshold",
        AlarmActions=[answer["PolicyARN"]],
    )  # fmt: skip
    described = clients.policies()[0]
    assert described["StepScalingPolicyConfiguration"] == config
    assert [alarm["AlarmName"] for alarm in described["Alarms"]] == ["mine"]
    clients.autoscaling.delete_scaling_policy(**RESOURCE, PolicyName="up")
    assert clients.alarm_names() == ["mine"]  # it is the user's


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"TargetTrackingScalingPolicyConfiguration": tracking(kind="ALBRequestCountPerTarget")},
            "is not one of SageMaker's",
        ),
        (
            {
                "TargetTrackingScalingPolicyConfiguration": tracking(
                    kind="SageMakerInferenceComponentInvocationsPerCopy"
                )
            },
            "cannot scale sagemaker:variant:DesiredInstanceCount",
        ),
        (
            {
                "TargetTrackingScalingPolicyConfiguration": {
                    "TargetValue": 1.0,
                    "PredefinedMetricSpecification": {
                        "PredefinedMetricType": CONCURRENCY,
                        "ResourceLabel": "app/x",
                    },
                }
            },
            "ResourceLabel cannot be used",
        ),
        (
            {"TargetTrackingScalingPolicyConfiguration": {"TargetValue": 1.0}},
            "Exactly one of PredefinedMetricSpecification",
        ),
        ({"TargetTrackingScalingPolicyConfiguration": tracking(target=0)}, "must be above 0"),
        (
            {"TargetTrackingScalingPolicyConfiguration": tracking(ScaleInCooldown=-1)},
            "ScaleInCooldown -1 is below 0",
        ),
        (
            {"TargetTrackingScalingPolicyConfiguration": by_math({"Expression": "q / "})},
            "Error in expression 'e'",
        ),
        (
            {"TargetTrackingScalingPolicyConfiguration": by_math({"Expression": "other / 2"})},
            "unknown id 'other'",
        ),
        (
            {
                "TargetTrackingScalingPolicyConfiguration": by_math(
                    {"Expression": "q / 2", "ReturnData": False}
                )
            },
            "Exactly one element of the metrics list should return data",
        ),
        ({}, "needs TargetTrackingScalingPolicyConfiguration"),
        ({"PolicyType": "Predictive"}, "failed to satisfy constraint"),
        (
            {
                "PolicyType": "StepScaling",
                "StepScalingPolicyConfiguration": stepping((0.0, 5.0, 1), (6.0, None, 2)),
            },
            "leave a gap between 5.0 and 6.0",
        ),
        (
            {
                "PolicyType": "StepScaling",
                "StepScalingPolicyConfiguration": stepping((0.0, None, 1))
                | {"AdjustmentType": "Doubling"},
            },
            "adjustmentType",
        ),
    ],
)
def test_policies_that_cannot_work_are_refused(
    clients: Clients, arguments: dict[str, Any], text: str
) -> None:
    clients.register()
    everything = {"PolicyName": "p", "PolicyType": "TargetTrackingScaling"} | arguments
    code, message, status = refusal(
        clients.autoscaling.put_scaling_policy, **RESOURCE, **everything
    )
    assert (code, status) == ("ValidationException", 400)
    assert text in message
    assert clients.policies() == []
    assert clients.alarm_names() == []


def test_a_metric_is_tracked_by_one_policy_only(clients: Clients) -> None:
    clients.register()
    clients.put_policy()
    with pytest.raises(ClientError, match="'track' tracks it already"):
        clients.put_policy("other")
    clients.put_policy("per-minute", kind="SageMakerVariantInvocationsPerInstance", target=100)
    assert len(clients.policies()) == 2


def test_policies_come_ten_at_a_time(clients: Clients) -> None:
    clients.register()
    for number in range(12):
        clients.autoscaling.put_scaling_policy(
            **RESOURCE,
            PolicyName=f"p{number:02}",
            PolicyType="StepScaling",
            StepScalingPolicyConfiguration=stepping((0.0, None, 1)),
        )
    pages = list(clients.autoscaling.get_paginator("describe_scaling_policies").paginate(**SERVICE))
    assert [len(page["ScalingPolicies"]) for page in pages] == [10, 2]
    assert [p["PolicyName"] for p in clients.policies(PolicyNames=["p03", "p99"])] == ["p03"]
    with pytest.raises(ClientError, match="ResourceId"):
        clients.policies(ScalableDimension=RESOURCE["ScalableDimension"])


def test_policies_need_a_target_and_deleting_one_removes_its_alarms(clients: Clients) -> None:
    put = partial(clients.put_policy)
    assert refusal(put) == ("ObjectNotFoundException", UNKNOWN_TARGET, 400)
    clients.register()
    clients.put_policy()
    assert len(clients.alarm_names()) == 2
    clients.autoscaling.delete_scaling_policy(**RESOURCE, PolicyName="track")
    assert clients.alarm_names() == []
    code, message, _ = refusal(
        clients.autoscaling.delete_scaling_policy, **RESOURCE, PolicyName="track"
    )
    assert code == "ObjectNotFoundException"
    assert message.startswith("No scaling policy found for service namespace: sagemaker")


# -------------------------------------------------------------------------------------- schedules


def put_action(clients: Clients, name: str = "night", **more: Any) -> None:
    action = {"Schedule": "cron(0 22 * * ? *)", "ScalableTargetAction": {"MinCapacity": 1}}
    clients.autoscaling.put_scheduled_action(
        **RESOURCE, ScheduledActionName=name, **(action | more)
    )


def test_scheduled_actions_are_put_described_and_deleted(clients: Clients) -> None:
    with pytest.raises(ClientError, match="No scalable target found"):
        put_action(clients)
    clients.register()
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=9)
    put_action(clients, Timezone="Europe/Berlin", EndTime=ends)
    put_action(clients, ScalableTargetAction={"MinCapacity": 2, "MaxCapacity": 8})
    found = clients.autoscaling.describe_scheduled_actions(**SERVICE)["ScheduledActions"]
    assert len(found) == 1
    assert found[0]["Schedule"] == "cron(0 22 * * ? *)"
    assert (found[0]["Timezone"], found[0]["EndTime"]) == ("Europe/Berlin", ends)
    assert found[0]["ScalableTargetAction"] == {"MinCapacity": 2, "MaxCapacity": 8}
    assert ":scheduledActionName/night" in found[0]["ScheduledActionARN"]
    clients.autoscaling.delete_scheduled_action(**RESOURCE, ScheduledActionName="night")
    code, message, _ = refusal(
        clients.autoscaling.delete_scheduled_action, **RESOURCE, ScheduledActionName="night"
    )
    assert (code, "night" in message) == ("ObjectNotFoundException", True)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"Schedule": "every(5 minutes)"}, "is no schedule"),
        ({"Timezone": "Mars/Olympus"}, "no IANA time zone"),
        ({"ScalableTargetAction": {}}, "needs MinCapacity"),
        ({"ScalableTargetAction": {"MinCapacity": 3, "MaxCapacity": 2}}, "above MaxCapacity"),
        ({"ScalableTargetAction": {"MinCapacity": 0}}, "MinCapacity 0 is below 1"),
        ({"ScalableTargetAction": {"MaxCapacity": 0}}, "MaxCapacity 0 is below 1"),
        (
            {
                "StartTime": datetime(2027, 1, 2, tzinfo=UTC),
                "EndTime": datetime(2027, 1, 1, tzinfo=UTC),
            },
            "StartTime of a scheduled action must be before its EndTime",
        ),
        ({"name": "a/b"}, "regular expression"),
        ({"name": " a"}, "regular expression"),
    ],
)
def test_schedules_that_never_run_are_refused(
    clients: Clients, change: dict[str, Any], text: str
) -> None:
    clients.register()
    with pytest.raises(ClientError, match=text) as raised:
        put_action(clients, **change)
    assert raised.value.response["Error"]["Code"] == "ValidationException"


# ------------------------------------------------------------------------------------- activities


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


# ----------------------------------------------------------------------------- with the endpoints


def test_deregistering_removes_policies_alarms_and_schedules(clients: Clients) -> None:
    clients.register()
    clients.put_policy()
    put_action(clients)
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


def test_predictive_policies_are_refused_by_name(clients: Clients) -> None:
    clients.register()
    with pytest.raises((ClientError, ParamValidationError), match="redictive"):
        clients.autoscaling.put_scaling_policy(
            **RESOURCE,
            PolicyName="p",
            PolicyType="PredictiveScaling",
            PredictiveScalingPolicyConfiguration={"MetricSpecifications": []},
        )
