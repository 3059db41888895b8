"""Names and places of everything that one local fleet makes on its host.

All of them follow from the state directory and the instance, so that a fresh process finds what
a dead one has left, and so that two fleets on one host never touch each other's.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

SHIM_SOCKETS_DIR = Path("/run/containerd/s")
RUNC_DIR = Path("/run/containerd/runc")
INSTANCE_ID = re.compile(r"i-[0-9a-f]{17}\Z")


@dataclass(frozen=True, slots=True)
class FleetNames:
    """Everything that belongs to one state directory."""

    state_dir: Path
    run_dir: Path

    @property
    def tag(self) -> str:
        return hashlib.sha256(str(self.state_dir).encode()).hexdigest()[:8]

    @property
    def instances_dir(self) -> Path:
        return self.state_dir / "instances"

    @property
    def control_socket(self) -> Path:
        return self.run_dir / "control.sock"

    @property
    def nft_table(self) -> str:
        return f"zeropull_{self.tag}"

    @property
    def cgroup(self) -> str:
        """Relative to the mount of every hierarchy."""
        return f"zeropull-{self.tag}"

    @property
    def link_prefix(self) -> str:
        """Of the host's ends of the veth pairs; a link's name has at most 15 characters."""
        return f"zp{self.tag[:5]}"

    @property
    def netns_prefix(self) -> str:
        return f"zp-{self.tag}-"

    def instance(self, instance_id: str) -> InstanceNames:
        return InstanceNames(self, instance_id)


@dataclass(frozen=True, slots=True)
class InstanceNames:
    """Everything that belongs to one instance."""

    fleet: FleetNames
    instance_id: str

    @property
    def disk_dir(self) -> Path:
        return self.fleet.instances_dir / self.instance_id

    @property
    def run_dir(self) -> Path:
        return self.fleet.run_dir / self.instance_id

    @property
    def record_file(self) -> Path:
        return self.disk_dir / "instance.json"

    @property
    def node_file(self) -> Path:
        return self.disk_dir / "node.json"

    @property
    def logs_dir(self) -> Path:
        return self.disk_dir / "logs"

    @property
    def volumes_dir(self) -> Path:
        return self.disk_dir / "volumes"

    @property
    def layers_dir(self) -> Path:
        return self.disk_dir / "layers"

    @property
    def profiles_dir(self) -> Path:
        return self.disk_dir / "profiles"

    @property
    def containerd_socket(self) -> Path:
        return self.run_dir / "containerd.sock"

    @property
    def containerd_namespace(self) -> str:
        return f"zeropull-{self.instance_id}"

    @property
    def cgroup(self) -> str:
        return f"{self.fleet.cgroup}/{self.instance_id}"

    @property
    def netns(self) -> str:
        return f"{self.fleet.netns_prefix}{self.instance_id}"

    @property
    def copy_netns_prefix(self) -> str:
        """Of the namespaces that the node agent makes for copies."""
        return f"{self.netns}-"

    @property
    def trace_prefix(self) -> str:
        """Of the node agent's instances of the kernel's tracing."""
        return f"{self.netns}-"

    @property
    def link(self) -> str:
        digest = hashlib.sha256(self.instance_id.encode()).hexdigest()
        return f"{self.fleet.link_prefix}{digest[:8]}"
