"""Every message of the private control API, version 1. JSON by msgspec; unknown fields are ignored.

Two shapes of call only:
  watch   GET  /v1/nodes/{instance_id}/assignment?since=N   -> NodeAssignment (long poll, 25 s)
          GET  /v1/gateway/routes?since=N                   -> Routes         (long poll, 25 s)
  report  POST /v1/nodes/{instance_id}/report    NodeReport
          POST /v1/gateway/report                GatewayReport
Long poll: answered at once when the newest version is greater than `since`, else 204 after 25 s.
Versions are compared within one epoch only, which a control plane makes anew at each start: who
watches also sends `epoch=E`, and is answered at once when it is another one. So a clock that was
set back never hides what is new. Who sends no epoch (0.1.0) is answered by versions alone.
Nodes authenticate with `Authorization: Bearer <node token>`; a node sees its own assignment only.
The gateway authenticates with the gateway token. All sizes in bytes, times in Unix seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from zeropull.resources.sources import ModelArtifact as ModelArtifact
from zeropull.resources.sources import RegistryAccess as RegistryAccess
from zeropull.resources.sources import StoreAccess as StoreAccess
from zeropull.resources.stages import StageRecord

LONG_POLL_S = 25.0


class ImagePath(StrEnum):
    """How a node makes an image available. AUTO walks the whole ladder, the others start lower."""

    AUTO = "auto"  # cache volume, then only missing layers, then own pull, then containerd
    FALLBACK = "fallback"  # our own pull, the cache volume is not looked at
    CONTAINERD = "containerd"  # containerd's ordinary pull and overlayfs snapshotter


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """A cache volume attached to this node. `index_digest` is the sha256 of its generation.json."""

    generation: int
    path: str
    index_digest: str


@dataclass(frozen=True, slots=True)
class ImageAssignment:
    """One distinct image, resolved once per deployment."""

    reference: str  # as the user wrote it; the registry and repository are read from it
    manifest_digest: str  # of the platform's manifest, pinned
    path: ImagePath = ImagePath.AUTO
    registry: RegistryAccess | None = None
    wait_for_generation: bool = False  # another node is pulling it for the cache: wait, do not pull
    keep: bool = True  # in the data cache when its last copy has gone; False: EnableCaching false


@dataclass(frozen=True, slots=True)
class ResourceLimits:
    """Limits of one copy; None = the whole instance. `accelerators` are CDI device names
    ("nvidia.com/gpu=0") or plain indexes when accelerators are simulated."""

    cpu_cores: float | None = None
    memory_bytes: int | None = None
    pids: int = 32768
    accelerators: tuple[str, ...] = ()
    simulated_accelerators: int = 0


@dataclass(frozen=True, slots=True)
class CopyAssignment:
    """One container that should run (or stop) on this node.

    Copies are immutable but for `desired`: a new image or model is a new copy_id.
    `desired`: "run" or "stop". Stop = SIGTERM, `stop_grace_s`, SIGKILL, then forgotten; the control
    plane has drained the copy before. `environment` is complete but for what the image sets.
    """

    copy_id: str
    image: str  # manifest digest, key into NodeAssignment.images
    desired: str = "run"
    environment: dict[str, str] = field(default_factory=dict)
    hostname: str | None = None
    artifacts: tuple[ModelArtifact, ...] = ()
    limits: ResourceLimits = field(default_factory=ResourceLimits)
    model_download_timeout_s: float = 1800.0
    health_timeout_s: float = 480.0
    stop_grace_s: float = 30.0
    shm_bytes: int = 1 << 30
    enable_caching: bool = True
    component: str | None = None
    container_name: str = "primary"


@dataclass(frozen=True, slots=True)
class NodeAssignment:
    """Everything a node should do now. `version` grows with every change within an `epoch`."""

    version: int
    instance_id: str
    endpoint: str = ""
    variant: str = ""
    volumes: tuple[VolumeMount, ...] = ()  # newest first
    images: tuple[ImageAssignment, ...] = ()
    copies: tuple[CopyAssignment, ...] = ()
    epoch: str = ""
    # Chain IDs whose copy in this node's store was no good for the image cache: verify them now.
    suspect_layers: tuple[str, ...] = ()


class CopyState(StrEnum):
    """Life of a copy on its node: PENDING -> PREPARING -> STARTING -> HEALTHY | UNHEALTHY ...

    UNHEALTHY: was healthy, /ping fails now (the agent restarts the container with backoff).
    BACKOFF: died or never became healthy, will be started again at a stated time.
    FAILED: cannot succeed without a new deployment, or the health/download time-out passed.
    STOPPED: gone, nothing is left of it on the node.
    """

    PENDING = "pending"
    PREPARING = "preparing"  # image and model
    STARTING = "starting"  # container runs, /ping not yet 200
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    BACKOFF = "backoff"
    FAILED = "failed"
    STOPPING = "stopping"
    STOPPED = "stopped"


class FailureKind(StrEnum):
    """Why a copy failed; the control plane turns it into SageMaker's FailureReason."""

    IMAGE_NOT_FOUND = "image_not_found"
    REGISTRY_UNREACHABLE = "registry_unreachable"
    REGISTRY_DENIED = "registry_denied"
    IMAGE_INTEGRITY = "image_integrity"  # wrong digest
    IMAGE_PLATFORM = "image_platform"
    IMAGE_INVALID = "image_invalid"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_INVALID = "model_invalid"  # truncated, unsafe archive, ...
    MODEL_UNREACHABLE = "model_unreachable"
    MODEL_TIMEOUT = "model_timeout"
    DISK_FULL = "disk_full"
    CONTAINER_START = "container_start"  # runc could not start it
    CONTAINER_EXITED = "container_exited"
    HEALTH_TIMEOUT = "health_timeout"
    ACCELERATOR = "accelerator"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class CopyReport:
    copy_id: str
    state: CopyState
    host: str | None = None  # address reachable from the gateway
    port: int = 8080
    healthy_at_s: float | None = None
    restarts: int = 0
    next_start_s: float | None = None
    failure: FailureKind | None = None
    message: str = ""  # names the thing, the value and the remedy
    stages: tuple[StageRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageReport:
    """An image on this node. `complete` once every layer's files are published in the node's
    layer store; then the control plane may collect them into a generation. `on_node`: a copy can
    start from it without a registry, whichever way it came."""

    manifest_digest: str
    complete: bool
    chain_ids: tuple[str, ...] = ()
    layers_from_cache: int = 0
    layers_total: int = 0
    registry_bytes: int = 0
    path: str = ""
    failure: FailureKind | None = None
    message: str = ""
    dropped_layers: tuple[str, ...] = ()  # chain IDs of the volume that failed verification
    on_node: bool = False


@dataclass(frozen=True, slots=True)
class LabelledCounter:
    """A counter that has one label, as images by their path; `name` as Prometheus has it."""

    name: str
    label: str
    of: str
    value: float


@dataclass(frozen=True, slots=True)
class NodeReport:
    """Whole state each time (not a delta). Sent on change and at least every 5 s."""

    instance_id: str
    assignment_version: int  # newest version this node has acted on
    sent_at_s: float
    agent_started_s: float
    copies: tuple[CopyReport, ...] = ()
    images: tuple[ImageReport, ...] = ()
    counters: dict[str, float] = field(default_factory=dict)  # cache hits, verification failures...
    utilization: dict[str, float] = field(default_factory=dict)  # CPUUtilization etc., percent
    labelled_counters: tuple[LabelledCounter, ...] = ()
    assignment_epoch: str = ""  # of the assignment acted on; "" from nodes of 0.1.0


@dataclass(frozen=True, slots=True)
class AccessKey:
    access_key_id: str
    secret_access_key: str
    account: str


@dataclass(frozen=True, slots=True)
class Target:
    """One healthy (or draining) copy."""

    copy_id: str
    instance_id: str
    host: str
    port: int
    draining: bool = False
    component: str | None = None
    max_concurrency: int | None = None  # None = unlimited


@dataclass(frozen=True, slots=True)
class VariantRoute:
    name: str
    weight: float = 1.0
    strategy: str = "RANDOM"  # or LEAST_OUTSTANDING_REQUESTS
    targets: tuple[Target, ...] = ()
    queue_limit: int = 1000  # requests that may wait for a slot, over all targets
    container_name: str = "primary"  # as it stands in ModelError texts
    instance_type: str = ""


@dataclass(frozen=True, slots=True)
class EndpointRoute:
    name: str
    account: str
    status: str
    component_based: bool = False
    variants: tuple[VariantRoute, ...] = ()
    components: tuple[str, ...] = ()  # names of all its inference components
    hold_from_zero: bool = False  # `fast` mode: hold requests while the first copy starts
    held_components: tuple[str, ...] = ()  # the same for some of its components only
    components_at_zero: tuple[str, ...] = ()  # of which no copy is wanted


@dataclass(frozen=True, slots=True)
class Routes:
    version: int
    region: str = "us-east-1"
    keys: tuple[AccessKey, ...] = ()
    endpoints: tuple[EndpointRoute, ...] = ()
    epoch: str = ""


@dataclass(frozen=True, slots=True)
class CopyReading:
    """One second (aligned to whole Unix seconds) of one copy, or of a queue (copy_id == "").

    `in_flight_max/min` exact extremes of concurrent requests in that second, queued ones included
    in the queue's own reading; `in_flight_integral` request-seconds. Latencies in microseconds, a
    sample per finished request, at most 2,000 kept per second, uniformly sampled."""

    account: str
    endpoint: str
    variant: str
    copy_id: str
    instance_id: str
    component: str | None
    second: int
    in_flight_max: int
    in_flight_min: int
    in_flight_integral: float
    invocations: int = 0
    errors_4xx: int = 0
    errors_5xx: int = 0
    model_errors: int = 0
    no_capacity: int = 0
    queue_age_max_s: float = 0.0
    model_latency_us: tuple[int, ...] = ()
    overhead_latency_us: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class WaitingRequests:
    """Requests that wait now at one gateway for a slot of one variant, or of one component.

    `count` is at least 1. `component` None: the requests are the variant's own.
    """

    account: str
    endpoint: str
    variant: str
    component: str | None
    count: int


@dataclass(frozen=True, slots=True)
class GatewayReport:
    """Every half second while requests run, else every second; at once after new routes."""

    gateway_id: str
    routes_version: int  # newest version applied
    sent_at_s: float
    in_flight: dict[str, int] = field(
        default_factory=dict
    )  # copy_id -> requests now (draining too)
    # "endpoint/variant[/component]" -> waiting. Only gateways of 0.1.0 send it, in place of
    # `waiting`: during an upgrade, one of them may still report.
    queued: dict[str, int] = field(default_factory=dict)
    routed_at_s: dict[str, float] = field(default_factory=dict)  # copy_id -> entered rotation
    first_response_s: dict[str, float] = field(default_factory=dict)  # copy_id -> first 2xx answer
    readings: tuple[CopyReading, ...] = ()
    # The first half of the second that has not ended yet, of copies and queues with requests:
    # `in_flight_integral` and the extremes alone, scaled to a whole second.
    halves: tuple[CopyReading, ...] = ()
    waiting: tuple[WaitingRequests, ...] = ()  # queues in which somebody waits
    routes_epoch: str = ""  # of the routes applied; "" from gateways of 0.1.0
    leaving: bool = False  # its last report: nothing of it is there any more
