"""Scalable targets, their policies and schedules, and what was done: Application Auto Scaling's
objects for the sagemaker namespace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

NAMESPACE = "sagemaker"
VARIANT_DIMENSION = "sagemaker:variant:DesiredInstanceCount"
COMPONENT_DIMENSION = "sagemaker:inference-component:DesiredCopyCount"
SCALING_TAG = "zeropull:scaling"
"""Tag of a scalable target: "aws" or "fast" chooses how it is decided for."""
LoadSource = tuple[str, ...]
"""Account and component, or account, endpoint and variant."""


@dataclass(frozen=True, slots=True)
class ScalableTarget:
    """`resource_id` is endpoint/<name>/variant/<variant> or inference-component/<name>."""

    kind: ClassVar[str] = "scalable_target"

    account: str
    resource_id: str
    dimension: str
    minimum: int
    maximum: int
    arn: str
    created_s: float
    role_arn: str = ""
    scale_in_suspended: bool = False
    scale_out_suspended: bool = False
    schedule_suspended: bool = False
    out_at_s: float = 0.0  # the newest scale-out that took effect, and its cooldown
    out_from: int = 0
    out_to: int = 0
    out_cooldown_s: int = 0
    in_at_s: float = 0.0
    in_cooldown_s: int = 0
    in_from: int = 0

    @property
    def key(self) -> str:
        return target_key(self.account, self.resource_id, self.dimension)

    @property
    def endpoint_and_variant(self) -> tuple[str, str]:
        """("", "") for inference components."""
        return variant_of(self.resource_id)

    @property
    def component(self) -> str:
        """The inference component's name; "" for variants."""
        return component_of(self.resource_id)

    @property
    def load_source(self) -> LoadSource:
        """Whose requests it is scaled by."""
        if self.dimension == COMPONENT_DIMENSION:
            return (self.account, self.component)
        return (self.account, *self.endpoint_and_variant)

    @property
    def metric_dimensions(self) -> dict[str, str]:
        """The dimensions of its metrics in CloudWatch."""
        if self.dimension == COMPONENT_DIMENSION:
            return {"InferenceComponentName": self.component}
        endpoint, variant = self.endpoint_and_variant
        return {"EndpointName": endpoint, "VariantName": variant}

    def holds(self, mode: str) -> bool:
        """Whether requests for its component may wait until the first copy has been started.

        `mode`: "aws" or "fast", as `mode_of` gives it.
        """
        return mode == "fast" and self.maximum > 0 and not self.scale_out_suspended


@dataclass(frozen=True, slots=True)
class ScalingPolicy:
    """`request` is what PutScalingPolicy was sent: Describe gives it back. `alarms` are the names
    of the alarms that target tracking manages."""

    kind: ClassVar[str] = "scaling_policy"

    account: str
    resource_id: str
    dimension: str
    name: str
    arn: str
    policy_type: str  # TargetTrackingScaling | StepScaling
    created_s: float
    request: dict[str, Any] = field(default_factory=dict)
    alarms: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{target_key(self.account, self.resource_id, self.dimension)}/{self.name}"


@dataclass(frozen=True, slots=True)
class ScheduledAction:
    """`last_run_s`: the newest time of its schedule that has been carried out."""

    kind: ClassVar[str] = "scheduled_action"

    account: str
    resource_id: str
    dimension: str
    name: str
    arn: str
    schedule: str
    created_s: float
    timezone: str = ""
    start_s: float | None = None
    end_s: float | None = None
    minimum: int | None = None
    maximum: int | None = None
    last_run_s: float = 0.0

    @property
    def key(self) -> str:
        return f"{target_key(self.account, self.resource_id, self.dimension)}/{self.name}"


@dataclass(frozen=True, slots=True)
class ScalingActivity:
    """One change, or one attempt that changed nothing (`not_scaled` holds NotScaledReasons)."""

    kind: ClassVar[str] = "scaling_activity"

    activity_id: str
    account: str
    resource_id: str
    dimension: str
    description: str
    cause: str
    began_s: float
    status: str  # Pending | InProgress | Successful | Overridden | Unfulfilled | Failed
    ended_s: float | None = None
    message: str = ""
    details: str = ""
    desired: int | None = None
    not_scaled: tuple[dict[str, Any], ...] = ()

    @property
    def key(self) -> str:
        return f"{target_key(self.account, self.resource_id, self.dimension)}/{self.activity_id}"


def target_key(account: str, resource_id: str, dimension: str) -> str:
    """A target is one dimension of one resource."""
    return f"{account}/{dimension}/{resource_id}"


def mode_of(tags: Mapping[str, str], default: str) -> str:
    """How a scalable target with these tags is decided for: "aws" or "fast"."""
    tag = tags.get(SCALING_TAG)
    return tag if tag in ("aws", "fast") else default


def component_of(resource_id: str) -> str:
    """The component's name in inference-component/<name>; "" for anything else."""
    kind, _, name = resource_id.partition("/")
    return name if kind == "inference-component" and "/" not in name else ""


def variant_of(resource_id: str) -> tuple[str, str]:
    """(endpoint, variant) of a variant's resource id; ("", "") when it is none."""
    parts = resource_id.split("/")
    if len(parts) == 4 and parts[0] == "endpoint" and parts[2] == "variant":
        return parts[1], parts[3]
    return "", ""
