"""Deployments: the snapshot of a config with its models, and DeploymentConfig -> UpdatePolicy."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from zeropull.awsprotocol.members import MemberRules
from zeropull.errors import InvalidInput
from zeropull.resources.endpoint_configs import (
    BlueGreenPolicy,
    CapacitySize,
    EndpointConfig,
    RollingPolicy,
    UpdatePolicy,
)
from zeropull.resources.endpoints import Deployment, Variant
from zeropull.resources.models import Model

RULES = MemberRules(
    accepted={
        "DeploymentConfig.RollingUpdatePolicy.RollbackMaximumBatchSize": (
            "a rollback brings all old instances back at once"
        )
    }
)
COUNT = "DesiredInstanceCount"
WEIGHT = "DesiredWeight"


def deployment_of(
    config: EndpointConfig,
    find_model: Callable[[str], Model],
    policy: UpdatePolicy,
    now_s: float,
    *,
    retain: Collection[str] = (),
    previous: Deployment | None = None,
) -> Deployment:
    """A deployment that stands on its own feet. `retain`: which of COUNT and WEIGHT variants keep
    that the previous deployment has too."""
    variants = []
    for spec in config.variants:
        before = previous.variant(spec.name) if previous else None
        count, weight = spec.initial_instances, spec.initial_weight
        if before is not None and COUNT in retain:
            count = before.desired_instances
        if before is not None and WEIGHT in retain:
            weight = before.desired_weight
        containers = find_model(spec.model_name).containers if spec.model_name else ()
        variants.append(
            Variant(
                spec=spec, desired_instances=count, desired_weight=weight, containers=containers
            )
        )
    if previous is not None and not _can_shift(config, policy, previous):
        # Documented: the service falls back to blue/green, all at once.
        policy = UpdatePolicy(rollback_alarms=policy.rollback_alarms)
    return Deployment(
        config_name=config.name,
        variants=tuple(variants),
        started_s=now_s,
        policy=policy,
        config_request=dict(config.request),
    )


def policy_of(given: dict[str, Any] | None) -> UpdatePolicy:
    """Raises InvalidInput."""
    if not given:
        return UpdatePolicy()
    blue_green, rolling = given.get("BlueGreenUpdatePolicy"), given.get("RollingUpdatePolicy")
    if blue_green and rolling:
        raise InvalidInput(
            "DeploymentConfig has both BlueGreenUpdatePolicy and RollingUpdatePolicy: give one."
        )
    alarms = given.get("AutoRollbackConfiguration", {}).get("Alarms", [])
    names = tuple(alarm["AlarmName"] for alarm in alarms if "AlarmName" in alarm)
    if rolling:
        return UpdatePolicy(None, _rolling(rolling), names)
    return UpdatePolicy(_blue_green(blue_green or {}), None, names)


def _can_shift(config: EndpointConfig, policy: UpdatePolicy, previous: Deployment) -> bool:
    names = {variant.name for variant in config.variants}
    if policy.rolling:
        return names == {v.name for v in previous.variants} and len(names) == 1
    return names == {v.name for v in previous.variants}


def _blue_green(given: dict[str, Any]) -> BlueGreenPolicy:
    routing = given.get("TrafficRoutingConfiguration")
    if routing is None:
        return BlueGreenPolicy(termination_wait_s=given.get("TerminationWaitInSeconds", 0))
    shift = routing["Type"]
    canary = _size(routing.get("CanarySize"), "CanarySize", 1, 50)
    step = _size(routing.get("LinearStepSize"), "LinearStepSize", 10, 50)
    if (shift == "CANARY") != (canary is not None):
        raise InvalidInput(
            "CanarySize goes with the traffic routing type CANARY, and only with it."
        )
    if (shift == "LINEAR") != (step is not None):
        raise InvalidInput(
            "LinearStepSize goes with the traffic routing type LINEAR, and only with it."
        )
    wait_s = float(routing["WaitIntervalInSeconds"])
    termination_wait_s = float(given.get("TerminationWaitInSeconds", 0))
    limit_s = _limit(given, wait_s + termination_wait_s)
    return BlueGreenPolicy(shift, wait_s, canary, step, termination_wait_s, limit_s)


def _rolling(given: dict[str, Any]) -> RollingPolicy:
    batch = _size(given["MaximumBatchSize"], "MaximumBatchSize", 5, 50)
    assert batch is not None
    wait_s = float(given["WaitIntervalInSeconds"])
    rollback = _size(given.get("RollbackMaximumBatchSize"), "RollbackMaximumBatchSize", 5, 100)
    return RollingPolicy(batch, wait_s, _limit(given, wait_s), rollback)


def _size(given: dict[str, Any] | None, name: str, low: int, high: int) -> CapacitySize | None:
    if given is None:
        return None
    size = CapacitySize(given["Type"], given["Value"])
    if size.unit == "CAPACITY_PERCENT" and not low <= size.value <= high:
        raise InvalidInput(f"{name} must be between {low} and {high} percent, not {size.value}.")
    return size


def _limit(given: dict[str, Any], waits_s: float) -> float | None:
    limit = given.get("MaximumExecutionTimeoutInSeconds")
    if limit is None:
        return None
    if limit <= waits_s:
        raise InvalidInput(
            f"MaximumExecutionTimeoutInSeconds {limit} must be greater than the waits, "
            f"{waits_s:g} s in all."
        )
    return float(limit)
