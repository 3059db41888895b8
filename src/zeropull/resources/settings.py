"""Settings of every part: one frozen dataclass per table of the TOML file.

`zeropull.cli.config` builds them (flag over environment over TOML over default); the supervisor
writes the merged result to R/settings.json, which is all that the other processes read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from zeropull.backoff import Backoff
from zeropull.resources.node import (
    LAYER_BYTES,
    LAYER_ENTRIES,
    MODEL_LINK_SHARE,
    SCRUB_BYTES_PER_S,
    SCRUB_INTERVAL_S,
)

DEFAULT_STATE_DIR = "/var/lib/zeropull"
RUN_ROOT = "/run/zeropull"
DeliveryRung = Literal["auto", "fanotify", "fuse", "whole"]


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """[serve]: where zeropull listens and keeps its state."""

    host: str = "127.0.0.1"  # address of the client port; all four services answer there
    port: int = 8440  # 0 = a free port, written to R/address
    state_dir: str = DEFAULT_STATE_DIR  # must lie on ext4, xfs or btrfs: EROFS files are kept there
    run_dir: str = ""  # sockets and mounts; default /run/zeropull/<8 hex of sha256(state_dir)>
    region: str = "us-east-1"  # region of ARNs and of the credential scope
    account: str = "000000000000"  # account id of the key that the first start makes
    log_level: str = "info"  # debug, info, warning or error


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """[fleet]: the local fleet, in which every instance is a node of its own."""

    containerd: str = "containerd"  # binary, found on PATH
    runc: str = "runc"  # binary, found on PATH
    limit_network: bool = False  # true: every instance gets its type's bandwidth (tc tbf)
    network_bits_per_s: int | None = None  # with limit_network: this rate for every instance
    simulate_accelerators: bool = False  # true: types with GPUs start without any
    cdi_dirs: tuple[str, ...] = ("/etc/cdi", "/var/run/cdi")  # CDI specifications of the host
    node_disk_bytes: int | None = None  # disk budget of one node; None = what the disk has
    model_link_share: float = MODEL_LINK_SHARE  # of the link, while the image arrives beside it
    layer_bytes: int = LAYER_BYTES  # of one layer's tar; more is refused, so that no disk is filled
    layer_entries: int = LAYER_ENTRIES  # of one layer; a million take 500 MB while it is pulled
    scrub_interval_s: float = SCRUB_INTERVAL_S  # a node verifies all its layers so often; 0 = never
    scrub_bytes_per_s: int = SCRUB_BYTES_PER_S  # read for that: 1 % of a core; 0 = no limit
    max_instances: int = 64  # more is refused as missing capacity
    delivery: Literal["volume", "network"] = "volume"  # network: caches cross each instance's link
    delivery_rung: DeliveryRung = "auto"  # how readers wait for data; auto: the best that works
    network: str = "198.18.0.0/15"  # every instance gets a free /24 of it (RFC 2544's test network)
    copy_disk_bytes: int | None = None  # one container's own files; None = node_disk_bytes
    disk_reserve_bytes: int = 2 << 30  # free, or 5 % of the disk; else who fills it is ended
    no_new_privileges: bool = False  # true: sudo, ping and other set-uid programs do not work
    blocked_networks: tuple[str, ...] = ()  # closed to nodes, besides clouds' metadata services
    loopback_ports: tuple[int, ...] = ()  # ports of the host's 127.0.0.1 that nodes may reach


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """[source]: the process that serves image caches to nodes, with fleet.delivery = "network"."""

    host: str = "127.0.0.1"  # address that it listens on; local nodes reach the host's loopback
    port: int = 0  # 0 = a free port, the same one again after a restart
    max_connections: int = 256  # more are refused, and their nodes try again
    egress_bytes_per_s: float | None = None  # over all nodes together; None = no limit


@dataclass(frozen=True, slots=True)
class InstanceTypeSettings:
    """[instance_types."ml.name"]: one more instance type, or another shape for a known one."""

    vcpus: int
    memory_gib: float
    accelerators: int = 0
    network_gbit_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """[registries."host:port"]: how to reach one registry, its mirrors or its token server. A host
    that stands here may have any address, also one that only this machine can reach."""

    plain_http: bool | None = None  # default: plain HTTP on loopback without TLS settings only
    username: str | None = None
    password: str | None = None
    token: str | None = None
    ca_file: str | None = None  # PEM; trusted besides the system's authorities
    cert_file: str | None = None  # PEM; the client certificate
    key_file: str | None = None  # PEM; its key, unless it is in cert_file
    skip_verify: bool = False  # true: any certificate is taken; for tests
    mirrors: tuple[str, ...] = ()  # URLs that are asked before it, in this order


@dataclass(frozen=True, slots=True)
class BucketSettings:
    """[buckets.NAME]: the store behind s3://NAME/; `directory` maps it to a local folder."""

    endpoint: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    session_token: str | None = None
    directory: str | None = None
    etag_is_md5: bool = True  # false: a store whose ETags of one-part objects are something else


@dataclass(frozen=True, slots=True)
class ImageCacheSettings:
    """[image_cache]: generations of the endpoints' images."""

    enabled: bool = True
    all_instance_types: bool = False  # default: endpoints on accelerator types only, as SageMaker
    budget_bytes: int | None = None  # of all generations together; None = 80 % of the free disk


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """[endpoints]: how the control plane treats endpoints; all times in seconds."""

    interval_s: float = 1.0  # the reconcilers also run at once when something is reported
    drain_s: float = 65.0  # a copy may finish its requests this long: above the 60 s of one request
    delete_drain_s: float = 2.0  # the same on DeleteEndpoint, whose clients know that it ends
    route_ack_s: float = 10.0  # a gateway that does not confirm routes this long is not waited for
    node_lost_s: float = 30.0  # no report and no answer to /ping this long: it is replaced
    node_start_s: float = 60.0  # a fresh instance's first report must come within
    unhealthy_s: float = 60.0  # a copy that fails /ping this long is replaced with its instance
    provision_timeout_s: float = 1800.0  # wait for capacity or a registry; a variant may differ
    idle_release_s: float = 120.0  # an instance without a component's copy this long is released
    retry_s: float = 2.0  # first delay of the replacement backoff; doubles up to retry_max_s
    retry_max_s: float = 120.0
    # Launches remembered per endpoint, and of all deleted endpoints together; the oldest go first.
    timeline_launches: int = 200

    @property
    def backoff(self) -> Backoff:
        """Pauses between attempts to replace what failed."""
        return Backoff(self.retry_s, self.retry_max_s)


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """[gateway]: the client port's process."""

    queue_limit: int = 1000  # requests of a variant that may wait for a slot
    request_timeout_s: float = 60.0  # one invocation, as SageMaker's own limit
    stream_timeout_s: float = 480.0  # one streamed answer
    hold_timeout_s: float = 50.0  # a request held from zero; boto3 gives up after 60 s
    connect_timeout_s: float = 0.25  # a container must accept within it, as on SageMaker
    relay_connect_timeout_s: float = 2.0  # the control plane's socket
    upstream_idle_s: float = 1.5  # idle connections go before any container closes them (2-5 s)
    max_body_bytes: int = 25 * 1024 * 1024  # SageMaker's limit; more is refused with 413
    max_buffered_bytes: int = 1 << 30  # request bodies in memory, all together; then 503
    # Bodies of calls of the API that the control plane has not answered yet; then 503.
    max_relayed_bytes: int = 64 * 1024 * 1024
    # Of clients, open at the same time. Beyond it, the client with the most of them loses one that
    # is idle, or the new one is closed.
    max_connections: int = 10_000
    # Whoever shows it as a bearer token may read /metrics; "" = only clients on this machine may.
    metrics_token: str = ""
    stop_grace_s: float = 30.0  # requests in flight may finish this long when it stops
    drain_timeout_s: float = 600.0  # the same beside its successor: the longest stream, and a rest
    verify_signatures: bool = True  # false: anyone may invoke anything (private networks, tests)


@dataclass(frozen=True, slots=True)
class ScalingSettings:
    """[scaling]: how scalable targets are decided for."""

    mode: Literal["aws", "fast"] = "aws"  # unless the target's tag zeropull:scaling says otherwise


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """[metrics]: readings that CloudWatch answers with."""

    max_per_account: int = 20_000  # custom metrics of one account; each takes 1 KB of memory


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything; also what R/settings.json holds."""

    serve: ServeSettings = field(default_factory=ServeSettings)
    fleet: FleetSettings = field(default_factory=FleetSettings)
    image_cache: ImageCacheSettings = field(default_factory=ImageCacheSettings)
    endpoints: EndpointSettings = field(default_factory=EndpointSettings)
    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    scaling: ScalingSettings = field(default_factory=ScalingSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    source: SourceSettings = field(default_factory=SourceSettings)
    instance_types: dict[str, InstanceTypeSettings] = field(default_factory=dict)
    registries: dict[str, RegistrySettings] = field(default_factory=dict)
    buckets: dict[str, BucketSettings] = field(default_factory=dict)
    docker_config: str = ""  # Docker config file with registry credentials; "" = /root/.docker
    gateway_token: str = ""  # made by the supervisor; never in the TOML file
    fresh_state: bool = False  # `serve --fresh-state`; never in the TOML file

    @property
    def state_dir(self) -> Path:
        return Path(self.serve.state_dir)

    @property
    def run_dir(self) -> Path:
        """Short, since the paths of Unix sockets may have 107 bytes only."""
        if self.serve.run_dir:
            return Path(self.serve.run_dir)
        name = hashlib.sha256(self.serve.state_dir.encode()).hexdigest()[:8]
        return Path(RUN_ROOT) / name

    @property
    def database(self) -> Path:
        return self.state_dir / "zeropull.db"

    @property
    def reserve_file(self) -> Path:
        return self.state_dir / "reserve"

    @property
    def source_certificate(self) -> Path:
        """Key and certificate of the source of generations."""
        return self.state_dir / "source" / "certificate.pem"

    @property
    def source_grants(self) -> Path:
        return self.state_dir / "source" / "grants"

    @property
    def source_address_file(self) -> Path:
        """Written by the source once it listens."""
        return self.run_dir / "source.address"

    @property
    def metrics_database(self) -> Path:
        return self.state_dir / "metrics.db"

    @property
    def control_socket(self) -> Path:
        return self.run_dir / "control.sock"

    @property
    def admin_socket(self) -> Path:
        return self.run_dir / "admin.sock"

    @property
    def api_socket(self) -> Path:
        return self.run_dir / "api.sock"

    @property
    def settings_file(self) -> Path:
        return self.run_dir / "settings.json"
