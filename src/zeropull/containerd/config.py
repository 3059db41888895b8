"""Which containerd is installed, and a config.toml for one of our own.

Follows containerd's documented config versions: 2 for 1.6 and 1.7, 3 for 2.x.
"""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from zeropull.errors import ConfigurationError

PLUGIN_NAME = "zeropull"
_VERSION = re.compile(r"\bv?(\d+)\.(\d+)\.(\d+)")
_DETECT_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class CriSettings:
    """Only for nodes that Kubernetes runs: `pause_image` is pulled by the snapshotter too.

    `registry_hosts_dir`: containerd's certs.d; "" = registries are reached by their defaults.
    `restrict_oom_score`: clamp oom_score_adj to what is inherited, for machines that deny lowering
    it (no CAP_SYS_RESOURCE), where runc would fail otherwise."""

    pause_image: str
    registry_hosts_dir: str = ""
    snapshotter: str = PLUGIN_NAME
    restrict_oom_score: bool = False


@dataclass(frozen=True, slots=True)
class ContainerdConfig:
    """A containerd of our own. `plugin_socket`: of the snapshotter plugin; `plugin_root`: its state
    directory, which containerd measures for free space; `cri` None = no CRI plugin.
    `remap_ids`: the plugin runs with `--remap-ids` (see `can_remap_ids`)."""

    root: Path
    state: Path
    socket: Path
    plugin_socket: Path
    plugin_root: Path
    cri: CriSettings | None = None
    log_level: str = "info"
    remap_ids: bool = False
    disabled: tuple[str, ...] = field(
        default=(
            "io.containerd.snapshotter.v1.btrfs",
            "io.containerd.snapshotter.v1.devmapper",
            "io.containerd.snapshotter.v1.zfs",
            "io.containerd.snapshotter.v1.aufs",
            "io.containerd.internal.v1.opt",  # would make /opt/containerd on the host
            "io.containerd.internal.v1.tracing",
            "io.containerd.tracing.processor.v1.otlp",
        )
    )


def detect_version(binary: str = "containerd") -> tuple[int, int, int]:
    """The version of an installed containerd.

    Raises:
        ConfigurationError: the binary is missing, or says no version.
    """
    try:
        said = subprocess.run(
            [binary, "--version"],
            capture_output=True,
            text=True,
            timeout=_DETECT_TIMEOUT_S,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigurationError(f"{binary} cannot be run: {error}") from error
    return parse_version(said)


def parse_version(text: str) -> tuple[int, int, int]:
    """Raises:
    ConfigurationError: there is no version in `text`, or it is older than 1.6.
    """
    found = _VERSION.search(text)
    if found is None:
        raise ConfigurationError(f"no containerd version in {text!r}")
    version = (int(found[1]), int(found[2]), int(found[3]))
    if version < (1, 6, 0):
        raise ConfigurationError(f"containerd {found[0]} is too old: 1.6 or newer is needed")
    return version


def can_remap_ids(version: tuple[int, int, int], release: str) -> bool:
    """Whether user namespaces work by ID-mapped mounts: containerd hands the mappings on from 2.0
    on, and Linux maps IDs of tmpfs, which holds the mount points, from 6.3 on.

    `release`: as `platform.release()` gives it.
    """
    kernel = re.match(r"(\d+)\.(\d+)", release)
    return version >= (2, 0, 0) and kernel is not None and _numbers(kernel) >= (6, 3)


def _numbers(found: re.Match[str]) -> tuple[int, ...]:
    return tuple(map(int, found.groups()))


def render_config(config: ContainerdConfig, version: tuple[int, int, int]) -> str:
    """The text of config.toml for a containerd of this version."""
    newer = version >= (2, 0, 0)
    disabled = list(config.disabled)
    if config.cri is None:
        disabled += _cri_plugins(newer)
    lines = [
        f"version = {3 if newer else 2}",
        f"root = {_quote(config.root)}",
        f"state = {_quote(config.state)}",
        f"disabled_plugins = {json.dumps(disabled)}",
        "",
        "[grpc]",
        f"  address = {_quote(config.socket)}",
        "",
        "[debug]",
        f"  level = {_quote(config.log_level)}",
        "",
        f"[proxy_plugins.{PLUGIN_NAME}]",
        '  type = "snapshot"',
        f"  address = {_quote(config.plugin_socket)}",
        *(['  capabilities = ["remap-ids"]'] if config.remap_ids else []),
        f"  [proxy_plugins.{PLUGIN_NAME}.exports]",
        f"    root = {_quote(config.plugin_root)}",
        "",
    ]
    if config.cri is not None:
        lines += _cri_lines(config.cri, newer)
    return "\n".join(lines)


def _cri_plugins(newer: bool) -> list[str]:
    if newer:
        return [
            f"io.containerd.{name}" for name in ("grpc.v1.cri", "cri.v1.images", "cri.v1.runtime")
        ]
    return ["io.containerd.grpc.v1.cri"]


def _cri_lines(cri: CriSettings, newer: bool) -> list[str]:
    # The streaming server is the one part of containerd that would listen on TCP: loopback, port 0.
    streaming = ['  stream_server_address = "127.0.0.1"', '  stream_server_port = "0"']
    pull = [f"    config_path = {_quote(cri.registry_hosts_dir)}"]
    runtime = 'runtimes.runc]\n    runtime_type = "io.containerd.runc.v2"'
    oom = f"  restrict_oom_score_adj = {json.dumps(cri.restrict_oom_score)}"
    if newer:
        images = 'plugins."io.containerd.cri.v1.images"'
        containers = 'plugins."io.containerd.cri.v1.runtime"'
        return [
            f"[{images}]",
            f"  snapshotter = {_quote(cri.snapshotter)}",
            f"  [{images}.pinned_images]",
            f"    sandbox = {_quote(cri.pause_image)}",
            f"  [{images}.registry]",
            *pull,
            f"[{containers}]",
            oom,
            f"  [{containers}.containerd.{runtime}",
            '[plugins."io.containerd.grpc.v1.cri"]',
            *streaming,
            '[[plugins."io.containerd.transfer.v1.local".unpack_config]]',
            '  platform = "linux"',
            f"  snapshotter = {_quote(cri.snapshotter)}",
            # One entry replaces the default ones, and `ctr pull --snapshotter overlayfs` needs its.
            '[[plugins."io.containerd.transfer.v1.local".unpack_config]]',
            '  platform = "linux"',
            '  snapshotter = "overlayfs"',
            "",
        ]
    plugin = 'plugins."io.containerd.grpc.v1.cri"'
    return [
        f"[{plugin}]",
        f"  sandbox_image = {_quote(cri.pause_image)}",
        *streaming,
        oom,
        f"  [{plugin}.containerd]",
        f"    snapshotter = {_quote(cri.snapshotter)}",
        f"  [{plugin}.containerd.{runtime}",
        f"  [{plugin}.registry]",
        *pull,
        "",
    ]


def _quote(value: object) -> str:
    """A TOML basic string; JSON's escapes are a subset of TOML's."""
    return json.dumps(str(value))
