"""What this machine has and lacks: each finding with what a shortfall costs and how to mend it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from zeropull.delivery.ladder import choose_rung, describe
from zeropull.linux.mounts import read_mounts
from zeropull.linux.processes import CAP_SYS_RESOURCE, has_capability
from zeropull.providers.local.cgroups import cgroup_version, find_hierarchies
from zeropull.providers.local.processes import find_program
from zeropull.resources.cdi import device_names, scan_specs
from zeropull.resources.settings import FleetSettings

_GOOD_FILE_SYSTEMS = ("ext4", "xfs", "btrfs")
_FILE_BACKED_KERNEL = (6, 12)
_LOW_DISK_BYTES = 20 << 30
_TIMEOUT_S = 10.0


class Verdict(StrEnum):
    """`MISSING`: zeropull cannot serve without it. `REDUCED`: it serves, at a cost."""

    GOOD = "good"
    REDUCED = "reduced"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `zeropull doctor`. `cost` and `remedy` are empty when all is good."""

    check: str
    verdict: Verdict
    found: str
    cost: str = ""
    remedy: str = ""


def unusable_reason(platform_name: str = sys.platform, user_id: int | None = None) -> str | None:
    """One sentence why zeropull cannot run here at all, or None."""
    if not platform_name.startswith("linux"):
        return f"zeropull runs on Linux only, and this is {platform_name}."
    if (os.geteuid() if user_id is None else user_id) != 0:
        return (
            "zeropull needs root for namespaces, mounts and cgroups: run it again with sudo, or "
            "as the systemd service."
        )
    return None


def examine(
    settings: FleetSettings, state_dir: Path, try_erofs: Callable[[Path], str | None] | None = None
) -> list[Finding]:
    """Look at everything that zeropull uses; changes nothing that stays.

    `try_erofs` really mounts a small EROFS image from a file in the folder that it is given, and
    returns what went wrong, None = it works.
    """
    place = _nearest(state_dir)
    return [
        _root(),
        _kernel(),
        _erofs(place, try_erofs),
        _delivery(place, settings),
        _overlayfs(),
        _cgroups(),
        _program("containerd", settings.containerd, "1.6"),
        _program("runc", settings.runc, "1.0"),
        _program("ctr", "ctr", ""),
        _program("nft", "nft", ""),
        _bridge_rules(),
        _program("ip", "ip", "", argument="-V"),
        _state_file_system(place),
        _free_disk(place),
        _accelerators(settings),
        _resource_capability(),
    ]


def _root() -> Finding:
    if os.geteuid() == 0:
        return Finding("root", Verdict.GOOD, "yes")
    return Finding(
        "root", Verdict.MISSING, f"user {os.geteuid()}", "nothing can be started", "run with sudo"
    )


def _kernel() -> Finding:
    release = platform.release()
    if kernel_version(release) >= _FILE_BACKED_KERNEL:
        return Finding("kernel", Verdict.GOOD, release)
    return Finding(
        "kernel",
        Verdict.REDUCED,
        release,
        "EROFS needs a loop device for each layer, which costs some milliseconds for each mount",
        "use kernel 6.12 or newer",
    )


def kernel_version(release: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _erofs(place: Path, try_erofs: Callable[[Path], str | None] | None) -> Finding:
    cost = "images cannot be mounted from the cache: every launch pulls, as containerd does"
    known = "erofs" in Path("/proc/filesystems").read_text().split()
    if not known and not _module_exists("erofs"):
        remedy = "install the kernel's extra modules, or use a kernel with CONFIG_EROFS_FS"
        return Finding("EROFS", Verdict.REDUCED, "not in this kernel", cost, remedy)
    kind = "built in or loaded" if known else "a module"
    if try_erofs is None:
        return Finding("EROFS", Verdict.GOOD, kind)
    try:
        with tempfile.TemporaryDirectory(prefix=".zeropull-doctor-", dir=place) as folder:
            problem = try_erofs(Path(folder))
    except OSError as error:
        problem = f"{place}: {error.strerror}"
    if problem is None:
        return Finding("EROFS", Verdict.GOOD, f"{kind}; a mount from a file in {place} works")
    remedy = "keep the state directory on ext4, xfs or btrfs; load the module with modprobe erofs"
    return Finding("EROFS", Verdict.REDUCED, f"{kind}, but {problem}", cost, remedy)


def _delivery(place: Path, settings: FleetSettings) -> Finding:
    """How a node reads an image that is still on its way."""
    try:
        rung = choose_rung(place, settings.delivery_rung)
    except OSError as error:
        return Finding("delivery", Verdict.REDUCED, f"{place}: {error.strerror}")
    if settings.delivery == "volume":
        found = f"by volumes; over the network, {describe(rung)}"
        return Finding("delivery", Verdict.GOOD, found)
    if rung == "fanotify":
        return Finding("delivery", Verdict.GOOD, describe(rung))
    cost = "a container starts later than it could"
    remedy = "Linux 6.14 or newer"
    if rung == "whole":
        remedy += ", or FUSE with its library (fuse3)"
    return Finding("delivery", Verdict.REDUCED, describe(rung), cost, remedy)


def _overlayfs() -> Finding:
    known = "overlay" in Path("/proc/filesystems").read_text().split()
    if known or _module_exists("overlay"):
        return Finding("overlayfs", Verdict.GOOD, "built in or loaded" if known else "a module")
    return Finding(
        "overlayfs",
        Verdict.MISSING,
        "not in this kernel",
        "no container can be started",
        "use a kernel with CONFIG_OVERLAY_FS",
    )


def _cgroups() -> Finding:
    hierarchies = find_hierarchies()
    version = cgroup_version(hierarchies)
    if version == "none":
        return Finding(
            "cgroups",
            Verdict.MISSING,
            "not mounted",
            "no container can be started",
            "mount cgroup2 at /sys/fs/cgroup",
        )
    available = {name for hierarchy in hierarchies for name in hierarchy.controllers}
    for hierarchy in hierarchies:
        if hierarchy.version == 2:
            with suppress(OSError):
                available.update((hierarchy.mount / "cgroup.controllers").read_text().split())
    missing = [name for name in ("cpu", "memory", "pids") if name not in available]
    if missing:
        return Finding(
            "cgroups",
            Verdict.REDUCED,
            f"{version}, without {', '.join(missing)}",
            "these limits of instances and containers are not enforced",
            "enable the controllers on the kernel's command line, e.g. cgroup_enable=memory",
        )
    return Finding("cgroups", Verdict.GOOD, f"{version}, with cpu, memory and pids")


def _program(check: str, name: str, oldest: str, *, argument: str = "--version") -> Finding:
    path = find_program(name)
    if path is None:
        return Finding(
            check,
            Verdict.MISSING,
            f"{name} is not on PATH",
            "no instance can be started",
            f"install {_package(check)} with apt-get install --no-remove",
        )
    try:
        said = subprocess.run(
            [path, argument], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(check, Verdict.MISSING, f"{path}: {error}", "no instance can be started")
    version = re.search(r"\d+\.\d+(?:\.\d+)?", said)
    found = f"{version[0] if version else said[:40]} ({path})"
    if version and oldest and kernel_version(version[0]) < kernel_version(oldest):
        cost, remedy = "it lacks what zeropull uses", f"install {check} {oldest} or newer"
        return Finding(check, Verdict.MISSING, found, cost, remedy)
    return Finding(check, Verdict.GOOD, found)


def _bridge_rules() -> Finding:
    """Really loaded, in a network namespace that goes at once."""
    rules = (
        "table bridge zeropull { set senders { type ifname . ether_addr . ipv4_addr\n }\n"
        "chain check { type filter hook prerouting priority -300; policy accept;\n"
        "iifname . ether saddr . ip saddr @senders accept\n }\n }\n"
    )
    try:
        tried = subprocess.run(
            ["unshare", "--net", "nft", "-f", "-"],
            input=rules,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        said = "" if tried.returncode == 0 else tried.stderr.strip() or "it fails"
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if not said:
        return Finding("bridge rules", Verdict.GOOD, "nftables filters what containers send")
    return Finding(
        "bridge rules",
        Verdict.REDUCED,
        said.splitlines()[0],
        "a container can claim the address of another one on its instance",
        "use a kernel with CONFIG_NF_TABLES_BRIDGE",
    )


def _package(check: str) -> str:
    return {"nft": "nftables", "ip": "iproute2", "ctr": "containerd"}.get(check, check)


def _state_file_system(place: Path) -> Finding:
    kind = file_system_of(place)
    if kind in _GOOD_FILE_SYSTEMS:
        return Finding("state directory", Verdict.GOOD, f"{place} on {kind}")
    return Finding(
        "state directory",
        Verdict.REDUCED,
        f"{place} on {kind}",
        "EROFS files cannot be mounted from there: every launch pulls its image",
        "set serve.state_dir to a folder on ext4, xfs or btrfs",
    )


def file_system_of(place: Path) -> str:
    """Type of the file system that holds an existing folder."""
    folder = place.resolve()
    covering = [
        mount for mount in read_mounts() if mount.target == folder or mount.target in folder.parents
    ]
    # Of mounts at the same place, the newest covers the others.
    best = max(enumerate(covering), key=lambda item: (len(item[1].target.parts), item[0]))
    return best[1].type


def _free_disk(place: Path) -> Finding:
    usage = shutil.disk_usage(place)
    found = f"{usage.free / (1 << 30):.1f} GiB of {usage.total / (1 << 30):.1f} GiB free"
    if usage.free >= _LOW_DISK_BYTES:
        return Finding("free disk", Verdict.GOOD, found)
    return Finding(
        "free disk",
        Verdict.REDUCED,
        found,
        "images of models have several GiB: caches and pulls may be refused",
        f"free some disk, {_LOW_DISK_BYTES >> 30} GiB are a good start",
    )


def _accelerators(settings: FleetSettings) -> Finding:
    specs, problems = scan_specs([Path(folder) for folder in settings.cdi_dirs])
    devices = device_names(specs)
    hardware = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    if devices and not problems:
        return Finding("accelerators", Verdict.GOOD, f"{len(devices)} by CDI: {', '.join(devices)}")
    if devices or problems:
        found = f"{len(devices)} by CDI; {'; '.join(problems)}"
        remedy = "repair or remove the file"
        cost = "the devices of a broken CDI specification cannot be given out"
        return Finding("accelerators", Verdict.REDUCED, found, cost, remedy)
    cost = "instance types with accelerators are refused as missing capacity"
    if hardware:
        remedy = "run nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
        found = f"{', '.join(hardware)}, without a CDI specification"
        return Finding("accelerators", Verdict.REDUCED, found, cost, remedy)
    if settings.simulate_accelerators:
        return Finding("accelerators", Verdict.GOOD, "none; simulated, as the settings say")
    remedy = "set fleet.simulate_accelerators = true to try zeropull without them"
    return Finding("accelerators", Verdict.REDUCED, "none", cost, remedy)


def _resource_capability() -> Finding:
    if has_capability(CAP_SYS_RESOURCE):
        return Finding("CAP_SYS_RESOURCE", Verdict.GOOD, "yes")
    return Finding(
        "CAP_SYS_RESOURCE",
        Verdict.REDUCED,
        "no",
        "oom scores and rlimits of containers are clamped to what zeropull itself has",
        "none needed; give the surrounding container or VM this capability to lift it",
    )


def _module_exists(name: str) -> bool:
    folder = Path("/lib/modules") / platform.release()
    return any(folder.glob(f"kernel/fs/**/{name}*.ko*")) if folder.is_dir() else False


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())
