"""What a node is told once, at its start: `node.json`, written by the provider, read by the agent.

Everything that changes later comes by watching the assignment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

SNAPSHOTTER = "zeropull"  # name of our plugin in containerd
MODEL_LINK_SHARE = 0.2
# As `zeropull.erofs.tar_layer` has them: far above what real images have.
LAYER_BYTES = 256 << 30
LAYER_ENTRIES = 4_000_000
# At this rate reading and BLAKE3 take 1 % of a core, and 100 GB of layers take less than an hour.
SCRUB_BYTES_PER_S = 32 << 20
SCRUB_INTERVAL_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node. `disk_dir` starts empty with every launch; `run_dir` is for sockets and mounts.

    `cgroup_parent` is the parent of the containers' cgroups, as runc wants it in `cgroupsPath`:
    absolute, relative to the mount of every hierarchy. Limits of the instance as a whole are set
    above it already. `accelerators` are the CDI device names given to this node, or plain indexes
    ("0", "1") when `simulate_accelerators`. Containers get addresses from `first_container_host` to
    `last_container_host` of `subnet`; `gateway` is their default route and `bridge` their link.
    `disk_bytes` is the budget of `disk_dir`, None = what the disk has. `model_link_share` of the
    link is a model's while an image arrives beside it. A layer with more than `layer_bytes` of tar
    or `layer_entries` entries is refused. Every layer is verified again each `scrub_interval_s`
    (0 = never), with at most `scrub_bytes_per_s` read (0 = no limit).
    """

    instance_id: str
    node_token: str = field(repr=False)
    control_socket: str
    disk_dir: str
    run_dir: str
    instance_type: str
    vcpus: int  # the smaller of the instance type's and the host's
    memory_bytes: int  # the same
    subnet: str  # "198.18.3.0/24"
    gateway: str  # "198.18.3.1", the host's end
    address: str  # "198.18.3.2", of the bridge
    cgroup_parent: str  # "/zeropull-1f2e3d4c/i-0123456789abcdef0/copies"
    bridge: str = "zp0"
    netns: str = ""  # name in /run/netns, every process of the node is in it; copies add "-<hex>"
    mtu: int = 1500
    first_container_host: int = 10
    last_container_host: int = 250
    containerd_namespace: str = ""  # "zeropull-<instance_id>"
    runc: str = "runc"
    accelerator_kind: str = ""  # "nvidia.com/gpu"
    accelerators: tuple[str, ...] = ()
    simulate_accelerators: bool = False
    cdi_dirs: tuple[str, ...] = ()
    disk_bytes: int | None = None
    model_link_share: float = MODEL_LINK_SHARE
    layer_bytes: int = LAYER_BYTES
    layer_entries: int = LAYER_ENTRIES
    copy_disk_bytes: int | None = None  # that one container may write; None: as `disk_bytes`
    disk_reserve_bytes: int = 2 << 30  # of the disk; with less, the copy that fills it is ended
    no_new_privileges: bool = False  # true: set-uid programs give containers nothing
    scrub_interval_s: float = SCRUB_INTERVAL_S
    scrub_bytes_per_s: int = SCRUB_BYTES_PER_S
    receiver_socket: str = ""  # where cache volumes come over the network; "" = they are attached
    log_level: str = "info"
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def containerd_socket(self) -> Path:
        return Path(self.run_dir) / "containerd.sock"

    @property
    def snapshotter_socket(self) -> Path:
        return Path(self.run_dir) / "snapshotter.sock"

    @property
    def snapshotter_status_socket(self) -> Path:
        """HTTP: what the plugin has counted."""
        return Path(self.run_dir) / "status.sock"

    @property
    def holder_socket(self) -> Path:
        """Of the process that holds the receiver's events."""
        return Path(self.run_dir) / "holder.sock"

    @property
    def journal_file(self) -> Path:
        """Of the readers that wait for data; in memory, since it means nothing after a reboot."""
        return Path(self.run_dir) / "readers"

    @property
    def receiver_file(self) -> Path:
        return Path(self.disk_dir) / "receiver.json"

    @property
    def mounts_dir(self) -> Path:
        """Mount points of layers, made by the snapshotter."""
        return Path(self.run_dir) / "m"

    @property
    def resolv_conf(self) -> Path:
        """For /etc/resolv.conf of every container."""
        return Path(self.disk_dir) / "resolv.conf"

    @property
    def snapshotter_dir(self) -> Path:
        return Path(self.disk_dir) / "snapshotter"

    @property
    def layers_dir(self) -> Path:
        """Layers pulled here, one directory for each chain ID (hex)."""
        return Path(self.disk_dir) / "layers"

    @property
    def catalog_dir(self) -> Path:
        """Symbolic links to the verified layers that the snapshotter may serve."""
        return Path(self.disk_dir) / "catalog"

    @property
    def models_dir(self) -> Path:
        return Path(self.disk_dir) / "models"

    @property
    def logs_dir(self) -> Path:
        """Logs of the node's own processes, and a folder for each copy."""
        return Path(self.disk_dir) / "logs"

    @property
    def volumes_dir(self) -> Path:
        """Cache volumes, read-only, one for each generation."""
        return Path(self.disk_dir) / "volumes"

    @property
    def agent_dir(self) -> Path:
        """The node agent's own durable state."""
        return Path(self.disk_dir) / "agent"

    @property
    def trace_prefix(self) -> str:
        """Of the names of its instances of the kernel's tracing, which outlive a dead agent."""
        return f"{self.netns or self.instance_id}-"

    @property
    def profiles_dir(self) -> Path:
        """Start profiles recorded here, `<hex of the manifest digest>.json`."""
        return Path(self.disk_dir) / "profiles"
