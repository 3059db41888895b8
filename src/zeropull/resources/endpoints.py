"""Endpoints: what is wanted (deployments), and what the reconcilers have made of it so far.

The API writes desired counts and weights, new deployments and the statuses Creating, Updating and
Deleting. Every other status, and every `current_...` field, is written by the reconcilers. Both run
in the control plane and change the document in a store transaction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from zeropull.resources.documents import new_uid
from zeropull.resources.endpoint_configs import UpdatePolicy, VariantSpec
from zeropull.resources.models import ContainerSpec


class EndpointStatus(StrEnum):
    """SageMaker's EndpointStatus."""

    OUT_OF_SERVICE = "OutOfService"
    CREATING = "Creating"
    UPDATING = "Updating"
    SYSTEM_UPDATING = "SystemUpdating"
    ROLLING_BACK = "RollingBack"
    IN_SERVICE = "InService"
    DELETING = "Deleting"
    FAILED = "Failed"
    UPDATE_ROLLBACK_FAILED = "UpdateRollbackFailed"

    @property
    def is_in_progress(self) -> bool:
        """Nothing but waiting is allowed."""
        return self in _IN_PROGRESS


_IN_PROGRESS = frozenset(
    {
        EndpointStatus.CREATING,
        EndpointStatus.UPDATING,
        EndpointStatus.SYSTEM_UPDATING,
        EndpointStatus.ROLLING_BACK,
        EndpointStatus.DELETING,
    }
)


class VariantPhase(StrEnum):
    """SageMaker's VariantStatus."""

    CREATING = "Creating"
    UPDATING = "Updating"
    DELETING = "Deleting"
    ACTIVATING_TRAFFIC = "ActivatingTraffic"
    BAKING = "Baking"


@dataclass(frozen=True, slots=True)
class VariantStatus:
    phase: VariantPhase
    message: str = ""
    began_s: float | None = None


@dataclass(frozen=True, slots=True)
class DeployedImage:
    """A reference resolved once per deployment; `manifest_digest` is the platform's."""

    reference: str
    manifest_digest: str
    resolved_s: float


@dataclass(frozen=True, slots=True)
class Variant:
    """One variant of a deployment: a snapshot of its config and model, and its capacity.

    `containers` is empty for a variant that hosts inference components. `desired_...` is written by
    the API (or an autoscaler through it), the rest by reconcilers.
    """

    spec: VariantSpec
    desired_instances: int
    desired_weight: float
    containers: tuple[ContainerSpec, ...] = ()
    current_instances: int = 0
    current_weight: float = 0.0
    shifted_instances: int = 0  # of an update: new instances that take traffic from the old fleet
    images: tuple[DeployedImage, ...] = ()
    statuses: tuple[VariantStatus, ...] = ()
    cause: str = ""  # why its capacity was changed last, and since when that was needed
    cause_s: float | None = None

    @property
    def name(self) -> str:
        return self.spec.name


@dataclass(frozen=True, slots=True)
class Deployment:
    """One roll-out of one endpoint config. Complete in itself: the records of the config and its
    models may be deleted meanwhile. `config_request` has what DescribeEndpoint echoes of it."""

    config_name: str
    variants: tuple[Variant, ...]
    started_s: float
    deployment_id: str = field(default_factory=new_uid)
    policy: UpdatePolicy = field(default_factory=UpdatePolicy)
    config_request: dict[str, Any] = field(default_factory=dict)
    shifted_s: float | None = None  # of an update: when traffic was moved last

    def variant(self, name: str) -> Variant | None:
        return next((v for v in self.variants if v.name == name), None)

    @property
    def is_component_based(self) -> bool:
        return any(v.spec.model_name is None for v in self.variants)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`uid` is new for every creation, so that an endpoint made again under the same name never
    meets the files of the first.

    Creating: `current` is None, `pending` is the first deployment. Updating with a new config:
    both are set. Updating for other counts or weights: `pending` is None, and the `desired_...` of
    `current` differ from its `current_...`. Deleting: status DELETING; the document goes when
    nothing of the endpoint is left.
    """

    kind: ClassVar[str] = "endpoint"

    account: str
    name: str
    arn: str
    uid: str
    status: EndpointStatus
    created_s: float
    modified_s: float
    current: Deployment | None = None
    pending: Deployment | None = None
    failure_reason: str = ""
    last_deployment_config: dict[str, Any] | None = None
    waiting: str = ""  # what it waits for now, for people

    @property
    def key(self) -> str:
        return endpoint_key(self.account, self.name)

    @property
    def is_stuck(self) -> bool:
        """Something is under way that waits or goes wrong: it may be replaced, or be deleted."""
        match self.status:
            case EndpointStatus.CREATING | EndpointStatus.UPDATING:
                return bool(self.waiting or self.failure_reason)
            case EndpointStatus.ROLLING_BACK:
                return bool(self.waiting)
            case _:
                return False

    @property
    def newest(self) -> Deployment | None:
        """The deployment that is wanted in the end."""
        return self.pending or self.current


def endpoint_key(account: str, name: str) -> str:
    """Endpoint names are unique without regard to case; the document keeps the case."""
    return f"{account}/{name.lower()}"
