"""InferenceComponentSpecification -> ComponentSpec, and DeploymentConfig -> UpdatePolicy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zeropull.api.sagemaker.containers import container_of
from zeropull.awsprotocol.members import MemberRules
from zeropull.errors import InvalidInput
from zeropull.resources.components import ComponentSpec
from zeropull.resources.endpoint_configs import CapacitySize, RollingPolicy, UpdatePolicy
from zeropull.resources.models import Model

_SPECIFICATION_ACCEPTED = {
    "Container.ContainerMetricsConfig": "containers' own metrics are not collected",
    "SchedulingConfig.AvailabilityZoneBalance": "there is one availability zone",
}
_SPECIFICATION_REFUSED = {
    "BaseInferenceComponentName": "adapters are not served",
    "ComputeResourceRequirements.AcceleratorPartitionType": "accelerators are given out whole",
}
RULES = MemberRules(
    accepted={f"Specification.{name}": why for name, why in _SPECIFICATION_ACCEPTED.items()},
    refused={
        "Specifications": "a variant has one instance type: give Specification",
        **{f"Specification.{name}": why for name, why in _SPECIFICATION_REFUSED.items()},
    },
)
UPDATE_RULES = MemberRules(
    accepted={
        **RULES.accepted,
        "DeploymentConfig.RollingUpdatePolicy.RollbackMaximumBatchSize": (
            "a rollback brings all old copies back at once"
        ),
    },
    refused=RULES.refused,
)


def spec_of(given: dict[str, Any], find_model: Callable[[str], Model]) -> ComponentSpec:
    """Raises InvalidInput, and what `find_model` raises."""
    model_name, container = given.get("ModelName"), given.get("Container")
    if (model_name is None) == (container is None):
        raise InvalidInput("Specification needs either a ModelName or a Container, not both.")
    if model_name is not None:
        spec = find_model(model_name).containers[0]
    else:
        assert container is not None
        definition = dict(container)
        if (url := definition.pop("ArtifactUrl", None)) is not None:
            definition["ModelDataUrl"] = url
        spec = container_of(definition, "Specification.Container")
    needs = given.get("ComputeResourceRequirements")
    if needs is None:
        raise InvalidInput("Specification needs ComputeResourceRequirements.")
    low, high = needs["MinMemoryRequiredInMb"], needs.get("MaxMemoryRequiredInMb")
    if high is not None and high < low:
        raise InvalidInput(
            f"MaxMemoryRequiredInMb {high} is less than MinMemoryRequiredInMb {low}."
        )
    accelerators = float(needs.get("NumberOfAcceleratorDevicesRequired", 0))
    if accelerators != int(accelerators):
        raise InvalidInput(
            f"NumberOfAcceleratorDevicesRequired {accelerators:g} must be a whole number: "
            "accelerators are given out whole."
        )
    startup = given.get("StartupParameters", {})
    return ComponentSpec(
        container=spec,
        memory_bytes=low << 20,
        cpu_milli=round(float(needs.get("NumberOfCpuCoresRequired", 0)) * 1000),
        accelerators=int(accelerators),
        max_memory_bytes=None if high is None else high << 20,
        strategy=given.get("SchedulingConfig", {}).get("PlacementStrategy", "SPREAD"),
        enable_caching=given.get("DataCacheConfig", {}).get("EnableCaching", True),
        model_download_timeout_s=float(startup.get("ModelDataDownloadTimeoutInSeconds", 1800)),
        health_timeout_s=float(startup.get("ContainerStartupHealthCheckTimeoutInSeconds", 480)),
        request=dict(given),
    )


def policy_of(given: dict[str, Any] | None) -> UpdatePolicy:
    """Without a DeploymentConfig one copy is replaced after the other. Raises InvalidInput."""
    if not given:
        return UpdatePolicy(None, None)
    rolling = given.get("RollingUpdatePolicy")
    alarms = given.get("AutoRollbackConfiguration", {}).get("Alarms", [])
    names = tuple(alarm["AlarmName"] for alarm in alarms if "AlarmName" in alarm)
    if rolling is None:
        return UpdatePolicy(None, None, names)
    wait_s = float(rolling["WaitIntervalInSeconds"])
    limit = rolling.get("MaximumExecutionTimeoutInSeconds")
    if limit is not None and limit <= wait_s:
        raise InvalidInput(
            f"MaximumExecutionTimeoutInSeconds {limit} must be greater than the wait interval, "
            f"{wait_s:g} s."
        )
    batch = _size(rolling["MaximumBatchSize"], "MaximumBatchSize", 5, 50)
    back = rolling.get("RollbackMaximumBatchSize")
    rollback = None if back is None else _size(back, "RollbackMaximumBatchSize", 5, 100)
    limit_s = None if limit is None else float(limit)
    return UpdatePolicy(None, RollingPolicy(batch, wait_s, limit_s, rollback), names)


def _size(given: dict[str, Any], name: str, low: int, high: int) -> CapacitySize:
    size = CapacitySize(given["Type"], given["Value"])
    if size.unit == "CAPACITY_PERCENT" and not low <= size.value <= high:
        raise InvalidInput(f"{name} must be between {low} and {high} percent, not {size.value}.")
    return size
