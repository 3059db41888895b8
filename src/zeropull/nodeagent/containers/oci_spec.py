"""The OCI runtime spec of a copy, as a pure function (OCI runtime-spec 1.0.2, config.json).

The defaults are containerd's (oci/spec.go `populateDefaultUnixSpec`); the container contract is
SageMaker's: the single argument `serve` replaces CMD, ENTRYPOINT is kept, model files read-only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from zeropull.errors import ImageError
from zeropull.nodeagent.containers.seccomp import seccomp_profile
from zeropull.nodeagent.containers.users import User

SERVE_ARGUMENT = "serve"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CPU_PERIOD_US = 100_000
NOFILE = 1_048_576

CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """`config` of an OCI or Docker image config document."""

    user: str = ""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    architecture: str = ""


class _ImageConfigFields(msgspec.Struct, rename="pascal"):
    user: str | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    env: list[str] | None = None
    working_dir: str | None = None
    labels: dict[str, str | None] | None = None


class _ImageConfigDocument(msgspec.Struct):
    config: _ImageConfigFields | None = None
    architecture: str | None = None


@dataclass(frozen=True, slots=True)
class HostLimits:
    """What this process inherited and therefore cannot exceed without CAP_SYS_RESOURCE."""

    nofile_hard: int
    oom_score_adj: int
    machine: str  # as uname has it
    cgroup_v2: bool
    may_exceed: bool  # CAP_SYS_RESOURCE is there: nothing needs clamping


@dataclass(frozen=True, slots=True)
class BindMount:
    """A file or directory of the node, seen by the container at `target`."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class SpecInputs:
    """All that a container's spec follows from; `platform_env` comes between image
    and assignment."""

    container_id: str
    image: ImageConfig
    user: User
    hostname: str
    cgroups_path: str
    network_namespace: str
    environment: dict[str, str]
    platform_env: dict[str, str] = field(default_factory=dict)
    mounts: tuple[BindMount, ...] = ()
    shm_bytes: int = 1 << 30
    cpu_cores: float | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    oom_score_adj: int = 0
    no_new_privileges: bool = False


def parse_image_config(document: bytes) -> ImageConfig:
    """Read what a container needs from the image's config blob.

    Raises:
        ImageError: it is not an image config.
    """
    try:
        parsed = msgspec.json.decode(document, type=_ImageConfigDocument)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ImageError(f"the image's config is not an OCI image config: {error}") from error
    inner = parsed.config or _ImageConfigFields()
    for text in (*(inner.entrypoint or ()), *(inner.env or ()), inner.working_dir or ""):
        if "\0" in text:
            raise ImageError(f"the image's config has a zero byte in {text[:80]!r}")
    return ImageConfig(
        user=inner.user or "",
        entrypoint=tuple(inner.entrypoint or ()),
        cmd=tuple(inner.cmd or ()),
        env=tuple(inner.env or ()),
        working_dir=inner.working_dir or "",
        labels={name: value or "" for name, value in (inner.labels or {}).items()},
        architecture=parsed.architecture or "",
    )


def build_spec(inputs: SpecInputs, host: HostLimits) -> dict[str, Any]:
    """The spec as JSON-ready data; CDI devices are applied to the result by the caller.

    Raises:
        ImageError: the image leaves nothing to run or names a relative WORKDIR.
    """
    cwd = inputs.image.working_dir or "/"
    if not cwd.startswith("/"):
        raise ImageError(f"the image's WORKDIR {cwd!r} is not absolute")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {
                "uid": inputs.user.uid,
                "gid": inputs.user.gid,
                "additionalGids": list(inputs.user.additional_gids),
            },
            "args": _arguments(inputs.image),
            "env": _environment(inputs),
            "cwd": cwd,
            "capabilities": {
                name: list(CAPABILITIES) for name in ("bounding", "effective", "permitted")
            },
            "rlimits": [_nofile(host)],
            "noNewPrivileges": inputs.no_new_privileges,
            "oomScoreAdj": _oom_score(inputs.oom_score_adj, host),
        },
        "root": {"path": "rootfs", "readonly": False},
        "hostname": inputs.hostname,
        "mounts": _mounts(inputs),
        "linux": _linux(inputs, host),
    }


def _arguments(image: ImageConfig) -> list[str]:
    # `docker run IMAGE serve`: without an ENTRYPOINT the image needs a program called serve.
    return [*image.entrypoint, SERVE_ARGUMENT]


def _environment(inputs: SpecInputs) -> list[str]:
    merged = {"PATH": DEFAULT_PATH, "HOME": inputs.user.home, "HOSTNAME": inputs.hostname}
    for line in inputs.image.env:
        name, _, value = line.partition("=")
        if name:
            merged[name] = value
    merged.update(inputs.platform_env)
    merged.update(inputs.environment)
    return [f"{name}={value}" for name, value in merged.items()]


def _nofile(host: HostLimits) -> dict[str, Any]:
    hard = NOFILE if host.may_exceed else min(NOFILE, host.nofile_hard)
    return {"type": "RLIMIT_NOFILE", "hard": hard, "soft": hard}


def _oom_score(wanted: int, host: HostLimits) -> int:
    # Lower than inherited fails inside runc as "can't get final child's PID from pipe: EOF".
    return wanted if host.may_exceed else max(wanted, host.oom_score_adj)


def _mounts(inputs: SpecInputs) -> list[dict[str, Any]]:
    cgroup_options = ["nosuid", "noexec", "nodev", "relatime", "ro"]
    mounts = [
        _mount("/proc", "proc", "proc", ["nosuid", "noexec", "nodev"]),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "/dev/pts",
            "devpts",
            "devpts",
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        _mount(
            "/dev/shm",  # noqa: S108 - the container's own
            "tmpfs",
            "shm",
            ["nosuid", "noexec", "nodev", "mode=1777", f"size={inputs.shm_bytes}"],
        ),
        _mount("/dev/mqueue", "mqueue", "mqueue", ["nosuid", "noexec", "nodev"]),
        _mount("/sys", "sysfs", "sysfs", ["nosuid", "noexec", "nodev", "ro"]),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", cgroup_options),
    ]
    # Parents before children, so that a mount below another one is not covered by it.
    for bind in sorted(inputs.mounts, key=lambda each: each.target):
        options = ["rbind", "rprivate", "ro" if bind.read_only else "rw"]
        mounts.append(_mount(bind.target, "bind", bind.source, [*options, "nosuid", "nodev"]))
    return mounts


def _mount(target: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": options}


def _linux(inputs: SpecInputs, host: HostLimits) -> dict[str, Any]:
    namespaces: list[dict[str, str]] = [
        {"type": "pid"},
        {"type": "ipc"},
        {"type": "uts"},
        {"type": "mount"},
        {"type": "network", "path": inputs.network_namespace},
    ]
    if host.cgroup_v2:
        namespaces.append({"type": "cgroup"})
    linux: dict[str, Any] = {
        "namespaces": namespaces,
        "cgroupsPath": inputs.cgroups_path,
        "resources": _resources(inputs),
        "maskedPaths": list(MASKED_PATHS),
        "readonlyPaths": list(READONLY_PATHS),
    }
    profile = seccomp_profile(host.machine)
    if profile is not None:
        linux["seccomp"] = profile
    return linux


def _resources(inputs: SpecInputs) -> dict[str, Any]:
    resources: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if inputs.cpu_cores is not None:
        resources["cpu"] = {
            "quota": max(1000, round(inputs.cpu_cores * CPU_PERIOD_US)),
            "period": CPU_PERIOD_US,
            "shares": max(2, round(inputs.cpu_cores * 1024)),
        }
    if inputs.memory_bytes is not None:
        resources["memory"] = {"limit": inputs.memory_bytes}
    if inputs.pids is not None:
        resources["pids"] = {"limit": inputs.pids}
    return resources
