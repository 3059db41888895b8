"""ProductionVariant -> VariantSpec, with the rules that the model's constraints cannot express."""

from __future__ import annotations

from typing import Any

from zeropull.errors import InvalidInput
from zeropull.resources.endpoint_configs import ManagedScaling, VariantSpec

ROUTING_STRATEGIES = ("LEAST_OUTSTANDING_REQUESTS", "RANDOM")


def variant_of(given: dict[str, Any], instance_types: frozenset[str]) -> VariantSpec:
    """Raises InvalidInput."""
    name = given["VariantName"]
    instance_type = given.get("InstanceType")
    if instance_type is None:
        raise InvalidInput(f'Production variant "{name}" must have an InstanceType.')
    if instance_type not in instance_types:
        raise InvalidInput(
            f'The instance type {instance_type} of production variant "{name}" is not in the '
            f'catalog of this fleet: add [instance_types."{instance_type}"] to the configuration '
            "file, or choose another type."
        )
    model_name = given.get("ModelName")
    scaling = _managed_scaling(given, is_component_variant=model_name is None)
    count = given.get("InitialInstanceCount")
    if count is None:
        if model_name is not None:
            raise InvalidInput(f'Production variant "{name}" must have an InitialInstanceCount.')
        count = scaling.min_instances if scaling and scaling.min_instances is not None else 1
    return VariantSpec(
        name=name,
        instance_type=instance_type,
        initial_instances=count,
        initial_weight=given.get("InitialVariantWeight", 1.0),
        model_name=model_name,
        volume_gb=given.get("VolumeSizeInGB"),
        model_download_timeout_s=float(given.get("ModelDataDownloadTimeoutInSeconds", 1800)),
        health_timeout_s=float(given.get("ContainerStartupHealthCheckTimeoutInSeconds", 480)),
        provision_timeout_s=given.get("VariantInstanceProvisionTimeoutInSeconds"),
        routing_strategy=_routing_strategy(given),
        managed_scaling=scaling,
    )


def _routing_strategy(given: dict[str, Any]) -> str:
    strategy = str(given.get("RoutingConfig", {}).get("RoutingStrategy", "RANDOM"))
    if strategy not in ROUTING_STRATEGIES:
        raise InvalidInput(
            f"RoutingStrategy {strategy} is not supported here: "
            f"choose {' or '.join(ROUTING_STRATEGIES)}."
        )
    return strategy


def _managed_scaling(given: dict[str, Any], *, is_component_variant: bool) -> ManagedScaling | None:
    scaling = given.get("ManagedInstanceScaling")
    if scaling is None:
        return None
    if not is_component_variant:
        raise InvalidInput(
            "ManagedInstanceScaling is only supported for inference component endpoints."
        )
    low, high = scaling.get("MinInstanceCount"), scaling.get("MaxInstanceCount")
    if low is not None and high is not None and low > high:
        raise InvalidInput(
            f"ManagedInstanceScaling: MinInstanceCount {low} is greater than MaxInstanceCount "
            f"{high}."
        )
    policy = scaling.get("ScaleInPolicy", {})
    return ManagedScaling(
        enabled=scaling.get("Status") == "ENABLED",
        min_instances=low,
        max_instances=high,
        strategy=policy.get("Strategy", "IDLE_RELEASE"),
        max_step=policy.get("MaximumStepSize", 1),
        cooldown_s=policy.get("CooldownInMinutes", 20) * 60.0,
    )
