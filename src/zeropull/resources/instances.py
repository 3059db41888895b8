"""Instances, the copies that run on them, and the timelines that outlive both."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from zeropull.resources.stages import StageRecord


class InstanceState(StrEnum):
    """WANTED -> LAUNCHING -> RUNNING -> DRAINING -> TERMINATING -> (document deleted).

    WANTED also means "waiting for its next attempt" (`next_attempt_s`) after missing capacity.
    """

    WANTED = "wanted"
    LAUNCHING = "launching"
    RUNNING = "running"
    DRAINING = "draining"
    TERMINATING = "terminating"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class AttachedVolume:
    """A generation attached to an instance; `path` as the node sees it. `leaving`: nothing on the
    node may use it any more; it is detached once the node has let go of it."""

    generation: int
    path: str
    index_digest: str
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Instance:
    """One machine of one variant. `reason` says why it was wanted."""

    kind: ClassVar[str] = "instance"

    instance_id: str
    account: str
    endpoint_uid: str
    endpoint: str
    variant: str
    instance_type: str
    deployment_id: str
    state: InstanceState
    node_token: str = field(repr=False)
    created_s: float
    reason: str = ""
    launched_s: float | None = None
    running_s: float | None = None
    draining_s: float | None = None
    terminating_s: float | None = None
    next_attempt_s: float | None = None
    attempts: int = 0
    address: str | None = None
    accelerators: tuple[str, ...] = ()
    volumes: tuple[AttachedVolume, ...] = ()
    failure: str = ""
    leaving: str = ""  # why its components' copies are to move elsewhere before it is drained
    idle_since_s: float | None = None  # since when it holds no component's copy

    @property
    def key(self) -> str:
        return self.instance_id


class CopyIntent(StrEnum):
    """RUN -> DRAIN (no new requests) -> STOP (the node ends it)."""

    RUN = "run"
    DRAIN = "drain"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class CopyRecord:
    """One copy of a container on one instance. `state` and `failure` hold the values that nodes
    report (`CopyState`, `FailureKind` of the control messages)."""

    kind: ClassVar[str] = "copy"

    copy_id: str
    instance_id: str
    account: str
    endpoint_uid: str
    endpoint: str
    variant: str
    deployment_id: str
    created_s: float
    manifest_digest: str = ""
    component: str | None = None
    container: int = 0  # index into the variant's containers
    intent: CopyIntent = CopyIntent.RUN
    state: str = "pending"
    host: str | None = None
    port: int = 8080
    healthy_s: float | None = None
    routed_s: float | None = None
    draining_s: float | None = None
    restarts: int = 0
    next_start_s: float | None = None
    failure: str | None = None
    message: str = ""
    accelerators: tuple[int, ...] = ()  # of a component's copy: which of the instance's are its own

    @property
    def key(self) -> str:
        return self.copy_id


@dataclass(frozen=True, slots=True)
class TimelineRecord:
    """The launch of one copy, stage by stage; kept after the copy and its instance, and for a while
    after its endpoint.

    `reason` is the decision that led to it; `new_instance` tells a launch with a new instance from
    one on an instance that was already there. `ready_s` is when it entered rotation.
    """

    kind: ClassVar[str] = "timeline"

    copy_id: str
    instance_id: str
    account: str
    endpoint_uid: str
    endpoint: str
    variant: str
    deployment_id: str
    instance_type: str
    began_s: float
    component: str | None = None
    new_instance: bool = True
    reason: str = ""
    ready_s: float | None = None
    first_response_s: float | None = None
    ended_s: float | None = None
    stages: tuple[StageRecord, ...] = ()

    @property
    def key(self) -> str:
        return self.copy_id
