"""Clients of the services that scaling needs, over one store; the test plays the reconcilers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import boto3
from botocore.config import Config

from tests.fixtures.aws_api import ACCOUNT, REGION, Served
from zeropull.resources.endpoints import Endpoint, EndpointStatus, endpoint_key

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

    def put_action(self, name: str = "night", **more: Any) -> None:
        action = {"Schedule": "cron(0 22 * * ? *)", "ScalableTargetAction": {"MinCapacity": 1}}
        self.autoscaling.put_scheduled_action(
            **RESOURCE, ScheduledActionName=name, **(action | more)
        )

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
