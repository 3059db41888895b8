"""Builds the settings: flag over environment over TOML over default. Nothing else reads them."""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from zeropull.errors import ConfigurationError
from zeropull.resources.settings import RegistrySettings, Settings
from zeropull.resources.sources import StoreAccess, check_store

DEFAULT_CONFIG = Path("/etc/zeropull/zeropull.toml")
ENVIRONMENT_PREFIX = "ZEROPULL_"
CONFIG_VARIABLE = "ZEROPULL_CONFIG"
_LOG_LEVELS = ("debug", "info", "warning", "error")
_REGION = re.compile(r"[a-z]{2,}(-[a-z]+)+-[0-9]+")
_MIRROR = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+(/[^?#\s]*)?")
_MAX_RUN_DIR = 60  # the path of a Unix socket may have 107 bytes
_NOT_IN_FILES = frozenset({"gateway_token", "fresh_state"})


def load_settings(
    *,
    config: Path | None,
    environment: Mapping[str, str],
    flags: Mapping[str, Any],
) -> Settings:
    """Merge the four sources. `flags` maps dotted keys ("serve.port") to values; None = not given.

    Environment variables are ZEROPULL_<TABLE>_<KEY> for the tables with fixed keys, for example
    ZEROPULL_SERVE_PORT=9000.

    Raises:
        ConfigurationError: names the key, the value and the rule.
    """
    tree = _read_toml(config, environment)
    _apply_environment(tree, environment)
    for key, value in flags.items():
        if value is not None:
            _put(tree, key, value)
    _refuse_unknown(Settings, tree, "")
    try:
        settings = msgspec.convert(tree, Settings)
    except msgspec.ValidationError as error:
        raise ConfigurationError(_with_place(str(error), tree)) from error
    _check_values(settings)
    return _made_absolute(settings)


def _check_values(settings: Settings) -> None:
    """Check what types cannot express. A wrong value is told here, before a process dies of it."""
    serve, network = settings.serve, settings.fleet.network
    _require(0 <= serve.port < 65536, "serve.port", serve.port, "a TCP port, 0 = any free one")
    _require(serve.log_level in _LOG_LEVELS, "serve.log_level", serve.log_level, _LOG_LEVELS)
    is_account = len(serve.account) == 12 and serve.account.isascii() and serve.account.isdigit()
    _require(is_account, "serve.account", serve.account, "12 digits")
    _require(bool(_REGION.fullmatch(serve.region)), "serve.region", serve.region, "like us-east-1")
    try:
        fits = ipaddress.IPv4Network(network).prefixlen <= 24
    except ValueError:
        fits = False
    _require(fits, "fleet.network", network, "an IPv4 network of /24 or larger, like 198.18.0.0/15")
    for network in settings.fleet.blocked_networks:
        _require(_is_network(network), "fleet.blocked_networks", network, "IP networks")
    for port in settings.fleet.loopback_ports:
        _require(0 < port < 65536, "fleet.loopback_ports", port, "TCP ports")
    share = settings.fleet.model_link_share
    _require(0 < share <= 0.9, "fleet.model_link_share", share, "more than 0, at most 0.9")
    for host, registry in settings.registries.items():
        _check_registry(f"registries.{host}", registry)
    for name, bucket in settings.buckets.items():
        check_store(name, StoreAccess(**dataclasses.asdict(bucket)))
    for table in ("fleet", "image_cache", "endpoints", "gateway", "metrics"):
        part = getattr(settings, table)
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if isinstance(value, (int, float)) and not value >= 0:
                raise ConfigurationError(f"{table}.{field.name} = {value}: expected 0 or more")
    # The longest path of a socket below it is <run_dir>/<instance id>/snapshotter-status.sock.
    length = len(os.fsencode(settings.run_dir.absolute()))
    _require(length <= _MAX_RUN_DIR, "serve.run_dir", settings.run_dir, f"{_MAX_RUN_DIR} bytes")


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _check_registry(key: str, registry: RegistrySettings) -> None:
    for name in ("ca_file", "cert_file", "key_file"):
        path = getattr(registry, name)
        if path is not None:
            _require(Path(path).is_file(), f"{key}.{name}", path, "a file in PEM format")
    has_certificate = registry.key_file is None or registry.cert_file is not None
    _require(has_certificate, f"{key}.key_file", registry.key_file, "a cert_file beside it")
    for url in registry.mirrors:
        _require(
            bool(_MIRROR.fullmatch(url)), f"{key}.mirrors", url, "http(s)://host[:port][/path]"
        )


def _with_place(message: str, tree: Mapping[str, Any]) -> str:
    """msgspec's message with the key as it is written in the file, and the value where the path
    leads to one (not inside named tables, which hold passwords)."""
    problem, _, path = message.partition(" - at `$.")
    key = path.rstrip("`")
    value: Any = tree
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return f"configuration: {message}"
        value = value[part]
    expected = problem.replace("Expected", "expected", 1).replace("`", "")
    return f"configuration: {key} = {value!r}: {expected}"


def _require(holds: bool, key: str, value: object, expected: object) -> None:
    if not holds:
        shown = ", ".join(expected) if isinstance(expected, tuple) else expected
        raise ConfigurationError(f"{key} = {str(value)!r}: expected {shown}")


def _read_toml(config: Path | None, environment: Mapping[str, str]) -> dict[str, Any]:
    path = config or (
        Path(environment[CONFIG_VARIABLE]) if CONFIG_VARIABLE in environment else DEFAULT_CONFIG
    )
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if path == DEFAULT_CONFIG:
            return {}
        raise ConfigurationError(f"configuration file {path} does not exist") from None
    except OSError as error:
        raise ConfigurationError(f"configuration file {path}: {error.strerror}") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"configuration file {path} is not TOML: {error}") from error


def _apply_environment(tree: dict[str, Any], environment: Mapping[str, str]) -> None:
    keys = _scalar_keys()
    for name, text in environment.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or name == CONFIG_VARIABLE:
            continue
        known = keys.get(name[len(ENVIRONMENT_PREFIX) :])
        if known is None:
            close = difflib.get_close_matches(name[len(ENVIRONMENT_PREFIX) :], keys, n=1)
            hint = f"; did you mean {ENVIRONMENT_PREFIX}{close[0]}?" if close else ""
            raise ConfigurationError(f"unknown environment variable {name}{hint}")
        key, annotation = known
        try:
            value = msgspec.convert(_from_text(text, annotation), annotation, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigurationError(f"{name}={text!r}: {error}") from error
        _put(tree, key, value)


def _from_text(text: str, annotation: Any) -> Any:
    return text.split(",") if typing.get_origin(annotation) is tuple else text


def _scalar_keys() -> dict[str, tuple[str, Any]]:
    found: dict[str, tuple[str, Any]] = {"DOCKER_CONFIG": ("docker_config", str)}
    for table, kind in typing.get_type_hints(Settings).items():
        if dataclasses.is_dataclass(kind):
            for key, annotation in typing.get_type_hints(kind).items():
                found[f"{table}_{key}".upper()] = (f"{table}.{key}", annotation)
    return found


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *tables, key = dotted.split(".")
    for table in tables:
        tree = tree.setdefault(table, {})
    tree[key] = value


def _refuse_unknown(kind: Any, tree: Any, path: str) -> None:
    if not isinstance(tree, dict):
        return
    if typing.get_origin(kind) is dict:
        for name, value in tree.items():
            _refuse_unknown(typing.get_args(kind)[1], value, f'{path}"{name}".')
        return
    if isinstance(kind, types.UnionType) or not dataclasses.is_dataclass(kind):
        return
    hints = typing.get_type_hints(kind)
    known = [name for name in hints if name not in _NOT_IN_FILES]
    for key, value in tree.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"; the nearest known key is {path}{close[0]}" if close else ""
            raise ConfigurationError(f"unknown configuration key {path}{key}{hint}")
        _refuse_unknown(hints[key], value, f"{path}{key}.")


def _made_absolute(settings: Settings) -> Settings:
    serve = dataclasses.replace(
        settings.serve, state_dir=str(Path(settings.serve.state_dir).absolute())
    )
    return dataclasses.replace(settings, serve=serve)
