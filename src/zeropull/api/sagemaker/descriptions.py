"""Endpoint -> DescribeEndpoint's output."""

from __future__ import annotations

from typing import Any

from zeropull.resources.endpoints import (
    DeployedImage,
    Deployment,
    Endpoint,
    EndpointStatus,
    Variant,
)

MAX_REASON = 1024
# Members of the config that DescribeEndpoint repeats.
_ECHOED = ("MetricsConfig",)
# Members of a variant that its summary repeats.
_ECHOED_OF_VARIANT = ("ManagedInstanceScaling", "RoutingConfig")
_WITH_PENDING = (EndpointStatus.CREATING, EndpointStatus.UPDATING, EndpointStatus.ROLLING_BACK)


def describe_endpoint(endpoint: Endpoint) -> dict[str, Any]:
    """The top level shows what serves; a deployment under way is the pending summary."""
    shown = endpoint.current or endpoint.pending
    described: dict[str, Any] = {
        "EndpointName": endpoint.name,
        "EndpointArn": endpoint.arn,
        "EndpointConfigName": shown.config_name if shown else None,
        "EndpointStatus": endpoint.status.value,
        "FailureReason": shortened(endpoint.failure_reason or endpoint.waiting) or None,
        "CreationTime": endpoint.created_s,
        "LastModifiedTime": endpoint.modified_s,
        "LastDeploymentConfig": endpoint.last_deployment_config,
    }
    if shown is not None:
        described |= {name: shown.config_request.get(name) for name in _ECHOED}
    if endpoint.current is not None:
        described["ProductionVariants"] = [
            _summary(variant, endpoint.current) for variant in endpoint.current.variants
        ]
    if endpoint.pending is not None and endpoint.status in _WITH_PENDING:
        pending = endpoint.pending
        described["PendingDeploymentSummary"] = {
            "EndpointConfigName": pending.config_name,
            "StartTime": pending.started_s,
            "ProductionVariants": [
                {**_summary(v, pending), "InstanceType": v.spec.instance_type}
                for v in pending.variants
            ],
        }
    return described


def _summary(variant: Variant, deployment: Deployment) -> dict[str, Any]:
    given: dict[str, Any] = next(
        (
            v
            for v in deployment.config_request.get("ProductionVariants", [])
            if v.get("VariantName") == variant.name
        ),
        {},
    )
    statuses = [
        {
            "Status": status.phase.value,
            "StatusMessage": shortened(status.message) or None,
            "StartTime": status.began_s,
        }
        for status in variant.statuses
    ]
    return {
        "VariantName": variant.name,
        "DeployedImages": [describe_image(image) for image in variant.images] or None,
        "CurrentWeight": variant.current_weight,
        "DesiredWeight": variant.desired_weight,
        "CurrentInstanceCount": variant.current_instances,
        "DesiredInstanceCount": variant.desired_instances,
        "VariantStatus": statuses[:5] or None,
        **{name: given.get(name) for name in _ECHOED_OF_VARIANT},
    }


def describe_image(image: DeployedImage) -> dict[str, Any]:
    """A DeployedImage of SageMaker's."""
    return {
        "SpecifiedImage": image.reference,
        "ResolvedImage": f"{_repository(image.reference)}@{image.manifest_digest}",
        "ResolutionTime": image.resolved_s,
    }


def _repository(reference: str) -> str:
    """The reference without tag and digest; a colon before the last slash is a port."""
    name = reference.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]


def shortened(text: str) -> str:
    """At most as long as a FailureReason may be."""
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 3] + "..."
