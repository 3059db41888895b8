"""What the admin API answers: frozen dataclasses, JSON on the wire.

`zeropull status --json` and `zeropull timeline --json` print these documents: members are added,
never renamed or removed.
"""

from __future__ import annotations

from dataclasses import dataclass

from zeropull.autoscaler.readings import NotScaled
from zeropull.controlapi.messages import CopyState
from zeropull.resources.components import ComponentStatus
from zeropull.resources.endpoints import EndpointStatus
from zeropull.resources.instances import InstanceState, TimelineRecord


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """The newest published generation of an endpoint's image cache. `generation` None: there is
    none. `message` is the outcome of the newest build."""

    generation: int | None
    images: int
    size_bytes: int
    message: str


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """A scalable target with its newest decision. `desired` None: nothing was decided yet."""

    resource_id: str
    minimum: int
    maximum: int
    mode: str
    decided_s: float
    desired: int | None
    policy: str | None
    not_scaled: NotScaled | None
    reason: str


@dataclass(frozen=True, slots=True)
class ComponentState:
    """An inference component. `message`: what failed, or what copies wait for."""

    name: str
    status: ComponentStatus
    desired_copies: int
    current_copies: int
    message: str


@dataclass(frozen=True, slots=True)
class CopyStatus:
    """One copy on its instance; `component` None: it is a model's."""

    copy_id: str
    component: str | None
    state: CopyState
    restarts: int
    message: str


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """`reason` is why the instance was wanted, `failure` what went wrong with it, or ""."""

    instance_id: str
    variant: str
    instance_type: str
    state: InstanceState
    reason: str
    failure: str
    copies: tuple[CopyStatus, ...]


@dataclass(frozen=True, slots=True)
class EndpointState:
    """One endpoint and everything that serves it."""

    name: str
    account: str
    status: EndpointStatus
    failure_reason: str
    image_cache: CacheStatus
    scaling: tuple[TargetStatus, ...]
    components: tuple[ComponentState, ...]
    instances: tuple[InstanceStatus, ...]


@dataclass(frozen=True, slots=True)
class DamagedState:
    """A stored document that was set aside; `found_s` is Unix time."""

    kind: str
    key: str
    reason: str
    found_s: int


@dataclass(frozen=True, slots=True)
class Status:
    """GET status. `gateways` are the ids of those that report; `disk_low` says what is short and
    how to mend it, or ""."""

    state_dir: str
    run_dir: str
    endpoints: tuple[EndpointState, ...]
    gateways: tuple[str, ...]
    damaged: tuple[DamagedState, ...] = ()
    disk_low: str = ""


@dataclass(frozen=True, slots=True)
class Timeline:
    """GET endpoints/NAME/timeline: the launches of one endpoint, oldest first."""

    endpoint: str
    uid: str
    launches: tuple[TimelineRecord, ...]


@dataclass(frozen=True, slots=True)
class LogFolder:
    """Where a copy's log files lie on this machine."""

    copy_id: str
    instance_id: str
    variant: str
    folder: str


@dataclass(frozen=True, slots=True)
class LogFolders:
    """GET endpoints/NAME/logs."""

    copies: tuple[LogFolder, ...]
