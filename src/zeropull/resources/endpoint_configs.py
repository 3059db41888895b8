"""Endpoint configs: immutable descriptions of variants, and how an update replaces instances."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class ManagedScaling:
    """Instances follow the copies of inference components."""

    enabled: bool
    min_instances: int | None = None
    max_instances: int | None = None
    strategy: str = "IDLE_RELEASE"  # or CONSOLIDATION
    max_step: int = 1
    cooldown_s: float = 1200.0


@dataclass(frozen=True, slots=True)
class VariantSpec:
    """One production variant. `model_name` None: it hosts inference components.

    `initial_instances` may be 0 for component variants only. Times in seconds.
    """

    name: str
    instance_type: str
    initial_instances: int = 1
    initial_weight: float = 1.0
    model_name: str | None = None
    volume_gb: int | None = None
    model_download_timeout_s: float = 1800.0
    health_timeout_s: float = 480.0
    provision_timeout_s: float | None = None
    routing_strategy: str = "RANDOM"  # or LEAST_OUTSTANDING_REQUESTS
    managed_scaling: ManagedScaling | None = None


@dataclass(frozen=True, slots=True)
class CapacitySize:
    """So many instances, or so many percent of the variant's."""

    unit: str  # INSTANCE_COUNT | CAPACITY_PERCENT
    value: int


@dataclass(frozen=True, slots=True)
class BlueGreenPolicy:
    """A whole new fleet beside the old one; `shift` ALL_AT_ONCE, CANARY or LINEAR."""

    shift: str = "ALL_AT_ONCE"
    wait_interval_s: float = 0.0
    canary: CapacitySize | None = None
    linear_step: CapacitySize | None = None
    termination_wait_s: float = 0.0
    max_execution_s: float | None = None


@dataclass(frozen=True, slots=True)
class RollingPolicy:
    """Batch by batch. `rollback_batch` None: the whole old fleet at once."""

    batch: CapacitySize
    wait_interval_s: float = 0.0
    max_execution_s: float | None = None
    rollback_batch: CapacitySize | None = None


@dataclass(frozen=True, slots=True)
class UpdatePolicy:
    """Exactly one of the two; an alarm of `rollback_alarms` in ALARM while baking rolls back."""

    blue_green: BlueGreenPolicy | None = field(default_factory=BlueGreenPolicy)
    rolling: RollingPolicy | None = None
    rollback_alarms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """`request` is what CreateEndpointConfig was sent, without Tags: Describe gives it back."""

    kind: ClassVar[str] = "endpoint_config"

    account: str
    name: str
    arn: str
    created_s: float
    variants: tuple[VariantSpec, ...]
    request: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return endpoint_config_key(self.account, self.name)

    @property
    def is_component_based(self) -> bool:
        return any(variant.model_name is None for variant in self.variants)


def endpoint_config_key(account: str, name: str) -> str:
    """Endpoint config names are case-sensitive."""
    return f"{account}/{name}"
