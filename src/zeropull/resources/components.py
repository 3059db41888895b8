"""Inference components: a model that shares an endpoint's instances with others, as copies.

The API writes desired counts, new versions and the statuses Creating, Updating and Deleting.
Everything else is written by the reconcilers. Both run in the control plane and change the document
in a store transaction.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, ClassVar

from zeropull.errors import Conflict
from zeropull.resources.documents import new_uid
from zeropull.resources.endpoint_configs import UpdatePolicy
from zeropull.resources.endpoints import DeployedImage
from zeropull.resources.models import ContainerSpec


class ComponentStatus(StrEnum):
    """SageMaker's InferenceComponentStatus."""

    CREATING = "Creating"
    IN_SERVICE = "InService"
    UPDATING = "Updating"
    FAILED = "Failed"
    DELETING = "Deleting"


# The names of SageMaker's inner states, which stand in the texts of refusals only.
_INNER_STATES = {
    ComponentStatus.CREATING: "CREATE_IN_PROGRESS",
    ComponentStatus.UPDATING: "UPDATE_RC_IN_PROGRESS",
    ComponentStatus.DELETING: "DELETE_IN_PROGRESS",
}


@dataclass(frozen=True, slots=True)
class ComponentSpec:
    """What one copy is and reserves. `request` is the Specification as it was sent.

    CPU in thousandths of a core. `memory_bytes` is reserved; `max_memory_bytes` is the container's
    limit, None = the whole instance.
    """

    container: ContainerSpec
    memory_bytes: int
    cpu_milli: int = 0
    accelerators: int = 0
    max_memory_bytes: int | None = None
    strategy: str = "SPREAD"  # or BINPACK
    enable_caching: bool = True
    model_download_timeout_s: float = 1800.0
    health_timeout_s: float = 480.0
    request: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ComponentVersion:
    """One deployment of a component, complete in itself: its model may be deleted meanwhile.

    `image` is None until the reference is resolved, which happens once. `shifted_copies` of an
    update have replaced copies of the version before; `batch_ready_s` is when the next batch became
    ready. `attempts` counts copies that failed in a row.
    """

    spec: ComponentSpec
    started_s: float
    version_id: str = field(default_factory=new_uid)
    policy: UpdatePolicy = field(default_factory=UpdatePolicy)
    image: DeployedImage | None = None
    shifted_copies: int = 0
    batch_ready_s: float | None = None
    attempts: int = 0
    next_attempt_s: float | None = None


@dataclass(frozen=True, slots=True)
class InferenceComponent:
    """`uid` is new for every creation. Creating: `current` is the first version. Updating with a
    new version: `pending` is set too. `retired`: versions of which copies still end.

    `waiting` says why copies cannot be placed now, since `waiting_since_s`; `cause` why the count
    was changed last, and since when that was needed.
    """

    kind: ClassVar[str] = "inference_component"

    account: str
    name: str
    arn: str
    uid: str
    endpoint_uid: str
    endpoint: str
    endpoint_arn: str
    variant: str
    status: ComponentStatus
    created_s: float
    modified_s: float
    desired_copies: int
    current: ComponentVersion
    pending: ComponentVersion | None = None
    retired: tuple[ComponentVersion, ...] = ()
    current_copies: int = 0
    failure_reason: str = ""
    waiting: str = ""
    waiting_since_s: float | None = None
    last_deployment_config: dict[str, Any] | None = None
    cause: str = ""
    cause_s: float | None = None

    @property
    def key(self) -> str:
        return component_key(self.account, self.name)

    @property
    def newest(self) -> ComponentVersion:
        """The version that is wanted in the end."""
        return self.pending or self.current

    @property
    def versions(self) -> tuple[ComponentVersion, ...]:
        """All that copies may be of."""
        pending = (self.pending,) if self.pending else ()
        return (self.current, *pending, *self.retired)

    def version(self, version_id: str) -> ComponentVersion | None:
        return next((v for v in self.versions if v.version_id == version_id), None)


def component_key(account: str, name: str) -> str:
    """Names are unique within an account and case-sensitive."""
    return f"{account}/{name}"


def refuse_busy(component: InferenceComponent, verb: str) -> None:
    """`verb`: update or delete.

    Raises:
        Conflict: something is under way, with SageMaker's text.
    """
    state = _INNER_STATES.get(component.status)
    if state is not None:
        raise Conflict(
            f'Cannot {verb} inference component "{component.arn}" while it is in state {state}.'
        )


def with_copies(
    component: InferenceComponent,
    copies: int,
    now_s: float,
    *,
    reason: str = "",
    cause_s: float | None = None,
    while_scaling: bool = False,
) -> InferenceComponent:
    """The component, Updating towards another count.

    `while_scaling`: an earlier change of the count may still be under way; this one replaces it.

    Raises:
        Conflict: the component is being created, updated or deleted, or has failed.
    """
    is_scaling = component.status is ComponentStatus.UPDATING and component.pending is None
    if not (while_scaling and is_scaling):
        refuse_busy(component, "update")
    if component.status is ComponentStatus.FAILED:
        raise Conflict(
            f'Cannot update inference component "{component.arn}" while its status is Failed: '
            "update its specification, or delete it."
        )
    return replace(
        component,
        status=ComponentStatus.UPDATING,
        modified_s=now_s,
        desired_copies=copies,
        failure_reason="",
        cause=reason,
        cause_s=cause_s,
    )
