"""Container Device Interface: which devices a host offers, and their edits of an OCI runtime spec.

Follows the CDI specification 1.0 (https://github.com/cncf-tags/container-device-interface,
SPEC.md), since containerd 1.6 does not apply it itself. intelRdt and netDevices are left out.
"""

from __future__ import annotations

import copy
import json
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from zeropull.errors import ConfigurationError, NotFound

_VERSIONS = ("0.3.", "0.4.", "0.5.", "0.6.", "0.7.", "0.8.", "1.")
_HOOKS = (
    "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop",
)  # fmt: skip

Edits = dict[str, Any]
StatFunction = Callable[[str], os.stat_result]


@dataclass(frozen=True, slots=True)
class CdiSpec:
    """One file. `priority`: index of its folder, later folders win over earlier ones."""

    kind: str  # "nvidia.com/gpu"
    devices: dict[str, Edits]
    edits: Edits = field(default_factory=dict)
    origin: str = ""
    priority: int = 0


def parse_spec(text: str, origin: str, priority: int = 0) -> CdiSpec:
    """Parse one specification, JSON when `origin` ends so, else YAML.

    Raises:
        ConfigurationError: it is not a CDI specification of a known version.
    """
    try:
        data = json.loads(text) if origin.endswith(".json") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"CDI specification {origin}: {error}") from error
    if not isinstance(data, dict):
        raise ConfigurationError(f"CDI specification {origin} is not an object")
    version, kind = str(data.get("cdiVersion", "")), str(data.get("kind", ""))
    if not version.startswith(_VERSIONS):
        raise ConfigurationError(f"CDI specification {origin}: cdiVersion {version!r} is not known")
    if kind.count("/") != 1:
        raise ConfigurationError(f"CDI specification {origin}: kind {kind!r} is not vendor/class")
    devices: dict[str, Edits] = {}
    for device in data.get("devices") or []:
        if not isinstance(device, dict) or "name" not in device:
            raise ConfigurationError(f"CDI specification {origin}: a device has no name")
        # YAML reads `name: 0` as a number.
        devices[str(device["name"])] = device.get("containerEdits") or {}
    return CdiSpec(kind, devices, data.get("containerEdits") or {}, origin, priority)


def scan_specs(folders: Sequence[Path]) -> tuple[list[CdiSpec], list[str]]:
    """All readable specifications of the folders, and what is wrong with the others."""
    specs: list[CdiSpec] = []
    problems: list[str] = []
    for priority, folder in enumerate(folders):
        if not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            if path.suffix not in (".json", ".yaml"):
                continue
            try:
                specs.append(parse_spec(path.read_text(), str(path), priority))
            except ConfigurationError as error:
                problems.append(str(error))
            except (OSError, UnicodeDecodeError) as error:
                problems.append(f"CDI specification {path}: {error}")
    return specs, problems


def read_specs(folders: Sequence[Path]) -> list[CdiSpec]:
    """All readable specifications of the folders; broken files are left out."""
    return scan_specs(folders)[0]


def device_names(specs: Iterable[CdiSpec], kind: str | None = None) -> list[str]:
    """Fully qualified names ("nvidia.com/gpu=0") of single devices, in numeric order.

    A device named "all" stands for the others, and one named by UUID is a second name for a
    numbered one: where a kind has numbered devices, only these are listed.
    """
    found: dict[str, set[str]] = {}
    for spec in specs:
        if kind is None or spec.kind == kind:
            found.setdefault(spec.kind, set()).update(spec.devices)
    names: list[str] = []
    for known, devices in sorted(found.items()):
        numbered = sorted((name for name in devices if name.isdigit()), key=int)
        others = sorted(name for name in devices if name != "all")
        names += [f"{known}={name}" for name in numbered or others]
    return names


def apply_cdi(
    oci_spec: dict[str, Any],
    specs: Sequence[CdiSpec],
    names: Sequence[str],
    stat_file: StatFunction = os.stat,
) -> dict[str, Any]:
    """A new OCI runtime spec with the devices' edits; `oci_spec` is not changed.

    A specification's own edits are applied once, however many of its devices are asked for.

    Raises:
        NotFound: a device, or its node on this host, does not exist.
        ConfigurationError: a device is specified twice, or an edit makes no sense.
    """
    result = copy.deepcopy(oci_spec)
    chosen = [_find(specs, name) for name in names]
    done: list[CdiSpec] = []
    for spec, _ in chosen:
        if not any(spec is other for other in done):
            done.append(spec)
            _apply(result, spec.edits, spec.origin, stat_file)
    for spec, edits in chosen:
        _apply(result, edits, spec.origin, stat_file)
    return result


def _find(specs: Sequence[CdiSpec], name: str) -> tuple[CdiSpec, Edits]:
    kind, _, device = name.partition("=")
    found = [spec for spec in specs if spec.kind == kind and device in spec.devices]
    if not found:
        known = ", ".join(device_names(specs)) or "none"
        raise NotFound(f"CDI device {name} does not exist on this host; known devices: {known}")
    best = max(spec.priority for spec in found)
    winners = [spec for spec in found if spec.priority == best]
    if len(winners) > 1:
        origins = ", ".join(spec.origin for spec in winners)
        raise ConfigurationError(f"CDI device {name} is specified more than once: {origins}")
    return winners[0], winners[0].devices[device]


def _apply(spec: dict[str, Any], edits: Edits, origin: str, stat_file: StatFunction) -> None:
    try:
        _apply_environment(spec, edits.get("env") or [])
        for node in edits.get("deviceNodes") or []:
            _apply_device(spec, node, origin, stat_file)
        _apply_mounts(spec, edits.get("mounts") or [])
        for hook in edits.get("hooks") or []:
            _apply_hook(spec, hook, origin)
        _apply_groups(spec, edits.get("additionalGids") or [])
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"CDI specification {origin}: bad edit, {error!r}") from error


def _apply_environment(spec: dict[str, Any], variables: list[str]) -> None:
    environment = spec.setdefault("process", {}).setdefault("env", [])
    for variable in variables:
        key = variable.partition("=")[0]
        environment[:] = [item for item in environment if item.partition("=")[0] != key]
        environment.append(variable)


def _apply_device(
    spec: dict[str, Any], node: dict[str, Any], origin: str, stat_file: StatFunction
) -> None:
    path = node["path"]
    kind, major, minor = _identify(node, origin, stat_file)
    device: dict[str, Any] = {"path": path, "type": kind}
    if kind != "p":
        device |= {"major": major, "minor": minor}
    if (mode := node.get("fileMode")) is not None:
        device["fileMode"] = mode
    user = spec.get("process", {}).get("user", {})
    for key in ("uid", "gid"):
        # A device whose owner is not given belongs to the container's user, as in containerd.
        value = node.get(key, user.get(key) or None)
        if value is not None:
            device[key] = value
    linux = spec.setdefault("linux", {})
    devices = linux.setdefault("devices", [])
    devices[:] = [other for other in devices if other.get("path") != path]
    devices.append(device)
    if kind in "bc":
        rules = linux.setdefault("resources", {}).setdefault("devices", [])
        access = node.get("permissions") or "rwm"
        rules.append(
            {"allow": True, "type": kind, "major": major, "minor": minor, "access": access}
        )


def _identify(node: dict[str, Any], origin: str, stat_file: StatFunction) -> tuple[str, int, int]:
    """Type, major and minor: as given, else as the host's node has them."""
    given, major, minor = node.get("type"), node.get("major"), node.get("minor")
    if given == "p" or (given in ("b", "c", "u") and major is not None and minor is not None):
        return ("c" if given == "u" else given), major or 0, minor or 0
    host_path = node.get("hostPath") or node["path"]
    try:
        status = stat_file(host_path)
    except OSError as error:
        raise NotFound(
            f"device {host_path}, which {origin} names, cannot be used: {error.strerror}"
        ) from error
    kinds = ((stat.S_ISBLK, "b"), (stat.S_ISCHR, "c"), (stat.S_ISFIFO, "p"))
    kind = next((letter for is_kind, letter in kinds if is_kind(status.st_mode)), None)
    if kind is None or (given not in (None, "", kind) and (given, kind) != ("u", "c")):
        raise ConfigurationError(f"{host_path}, which {origin} names, is not a device of its type")
    return kind, os.major(status.st_rdev), os.minor(status.st_rdev)


def _apply_mounts(spec: dict[str, Any], wanted: list[dict[str, Any]]) -> None:
    if not wanted:
        return
    mounts = spec.setdefault("mounts", [])
    for mount in wanted:
        target = mount["containerPath"]
        mounts[:] = [other for other in mounts if other.get("destination") != target]
        mounts.append(
            {
                "destination": target,
                "type": mount.get("type") or "bind",
                "source": mount["hostPath"],
                "options": list(mount.get("options") or ["rbind", "ro"]),
            }
        )


def _apply_hook(spec: dict[str, Any], hook: dict[str, Any], origin: str) -> None:
    name = hook["hookName"]
    if name not in _HOOKS:
        raise ConfigurationError(f"CDI specification {origin}: there is no hook {name!r}")
    entry = {key: hook[key] for key in ("path", "args", "env", "timeout") if hook.get(key)}
    spec.setdefault("hooks", {}).setdefault(name, []).append(entry)


def _apply_groups(spec: dict[str, Any], groups: list[int]) -> None:
    if not groups:
        return
    user = spec.setdefault("process", {}).setdefault("user", {})
    present = user.setdefault("additionalGids", [])
    present += [group for group in dict.fromkeys(groups) if group and group not in present]
