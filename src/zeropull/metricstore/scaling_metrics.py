"""Which metric a target-tracking policy follows, and policies as the autoscaler takes them.

Source: "Predefined metrics" of SageMaker's auto scaling guide. The high-resolution metrics have
10-second datapoints with the statistic Maximum, the others 60-second ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from zeropull.autoscaler.step_scaling import AdjustmentType, Step, StepScaling
from zeropull.autoscaler.target_tracking import DEFAULT_COOLDOWN_S, TargetTracking
from zeropull.errors import InvalidInput
from zeropull.metricstore.queries import MetricStat
from zeropull.resources.scaling import COMPONENT_DIMENSION, VARIANT_DIMENSION, ScalingPolicy

SAGEMAKER = "AWS/SageMaker"
_PREDEFINED: dict[str, tuple[str, str, int, str]] = {
    # type: metric, statistic, period in seconds, dimension that it may scale
    "SageMakerVariantInvocationsPerInstance": (
        "InvocationsPerInstance", "Sum", 60, VARIANT_DIMENSION,
    ),
    "SageMakerVariantConcurrentRequestsPerModelHighResolution": (
        "ConcurrentRequestsPerModel", "Maximum", 10, VARIANT_DIMENSION,
    ),
    "SageMakerInferenceComponentInvocationsPerCopy": (
        "InvocationsPerCopy", "Sum", 60, COMPONENT_DIMENSION,
    ),
    "SageMakerInferenceComponentConcurrentRequestsPerCopyHighResolution": (
        "ConcurrentRequestsPerCopy", "Maximum", 10, COMPONENT_DIMENSION,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ScalingMetric:
    """One metric with a statistic, or metric math. `period_s` 10 or 60."""

    period_s: int
    stat: MetricStat | None = None
    math: tuple[dict[str, Any], ...] = field(default=())

    def alarm_members(self) -> dict[str, Any]:
        """As PutMetricAlarm takes it."""
        if self.stat is None:
            return {"Metrics": list(self.math)}
        dimensions = [{"Name": name, "Value": v} for name, v in self.stat.dimensions.items()]
        statistic = self.stat.statistic
        which = "ExtendedStatistic" if statistic.startswith("p") else "Statistic"
        unit = {"Unit": self.stat.unit} if self.stat.unit else {}
        return {
            "Namespace": self.stat.namespace,
            "MetricName": self.stat.name,
            "Dimensions": dimensions,
            which: statistic,
            "Period": self.period_s,
            **unit,
        }


def metric_of(policy: ScalingPolicy) -> ScalingMetric:
    """The metric of a target-tracking policy.

    Raises:
        InvalidInput: none or both kinds given, a metric of another service, a resource label.
    """
    config = policy.request["TargetTrackingScalingPolicyConfiguration"]
    predefined = config.get("PredefinedMetricSpecification")
    customized = config.get("CustomizedMetricSpecification")
    if (predefined is None) == (customized is None):
        raise InvalidInput(
            "Exactly one of PredefinedMetricSpecification and CustomizedMetricSpecification must "
            "be given."
        )
    if predefined is not None:
        return _predefined(policy, predefined)
    if customized.get("Metrics"):
        queries = tuple(_with_period(raw) for raw in customized["Metrics"])
        return ScalingMetric(60, math=queries)
    for name in ("Namespace", "MetricName", "Statistic"):
        if not customized.get(name):
            raise InvalidInput(f"CustomizedMetricSpecification needs {name}, or Metrics.")
    dimensions = {each["Name"]: each["Value"] for each in customized.get("Dimensions") or []}
    stat = MetricStat(
        customized["Namespace"],
        customized["MetricName"],
        dimensions,
        customized["Statistic"],
        60,
        customized.get("Unit"),
    )
    return ScalingMetric(60, stat=stat)


def tracking_policy(policy: ScalingPolicy) -> TargetTracking:
    """A target-tracking policy as the autoscaler takes it."""
    config = policy.request["TargetTrackingScalingPolicyConfiguration"]
    target = float(config["TargetValue"])
    if not 0 < target < math.inf:
        raise InvalidInput(f"TargetValue {target:g} must be above 0.")
    for name in ("ScaleOutCooldown", "ScaleInCooldown"):
        _check_cooldown(name, config.get(name, 0))
    return TargetTracking(
        name=policy.name,
        target=target,
        period_s=metric_of(policy).period_s,
        scale_out_cooldown_s=config.get("ScaleOutCooldown", DEFAULT_COOLDOWN_S),
        scale_in_cooldown_s=config.get("ScaleInCooldown", DEFAULT_COOLDOWN_S),
        scale_in_disabled=config.get("DisableScaleIn", False),
    )


def step_policy(policy: ScalingPolicy) -> StepScaling:
    """A step policy as the autoscaler takes it."""
    config = policy.request["StepScalingPolicyConfiguration"]
    try:
        adjustment = AdjustmentType(config.get("AdjustmentType", ""))
    except ValueError:
        raise InvalidInput(
            f"AdjustmentType {config.get('AdjustmentType')!r} is not one of "
            f"{', '.join(AdjustmentType)}."
        ) from None
    steps = tuple(
        Step(
            step["ScalingAdjustment"],
            step.get("MetricIntervalLowerBound"),
            step.get("MetricIntervalUpperBound"),
        )
        for step in config.get("StepAdjustments") or []
    )
    _check_cooldown("Cooldown", config.get("Cooldown", 0))
    return StepScaling(
        name=policy.name,
        adjustment_type=adjustment,
        steps=steps,
        cooldown_s=config.get("Cooldown", DEFAULT_COOLDOWN_S),
        minimum_magnitude=config.get("MinAdjustmentMagnitude"),
    )


def concurrency_target(policy: ScalingPolicy) -> float | None:
    """The concurrent requests per instance or copy that the policy aims at; None when it tracks
    something else. The fast mode needs it."""
    if policy.policy_type != "TargetTrackingScaling":
        return None
    config = policy.request["TargetTrackingScalingPolicyConfiguration"]
    predefined = (config.get("PredefinedMetricSpecification") or {}).get("PredefinedMetricType", "")
    return float(config["TargetValue"]) if predefined.endswith("HighResolution") else None


def _check_cooldown(name: str, seconds: int) -> None:
    if seconds < 0:
        raise InvalidInput(f"{name} {seconds} is below 0.")


def _predefined(policy: ScalingPolicy, raw: dict[str, Any]) -> ScalingMetric:
    kind = raw["PredefinedMetricType"]
    if kind not in _PREDEFINED:
        known = ", ".join(sorted(_PREDEFINED))
        raise InvalidInput(f"The predefined metric {kind!r} is not one of SageMaker's: {known}.")
    if raw.get("ResourceLabel"):
        raise InvalidInput("ResourceLabel cannot be used with SageMaker's predefined metrics.")
    name, statistic, period_s, dimension = _PREDEFINED[kind]
    if dimension != policy.dimension:
        raise InvalidInput(f"The predefined metric {kind} cannot scale {policy.dimension}.")
    parts = policy.resource_id.split("/")
    dimensions = (
        {"EndpointName": parts[1], "VariantName": parts[3]}
        if dimension == VARIANT_DIMENSION
        else {"InferenceComponentName": parts[1]}
    )
    return ScalingMetric(period_s, MetricStat(SAGEMAKER, name, dimensions, statistic, period_s))


def _with_period(raw: dict[str, Any]) -> dict[str, Any]:
    stat = raw.get("MetricStat")
    return raw if stat is None else {**raw, "MetricStat": {**stat, "Period": 60}}
