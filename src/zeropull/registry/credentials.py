"""Credentials from a Docker config file (https://docs.docker.com/reference/cli/docker/login/).

`auths` holds them in the file, `credsStore` and `credHelpers` name programs
(`docker-credential-<name>`) that are asked anew each time, since what they hand out may expire.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from zeropull.errors import AccessDenied, ConfigurationError
from zeropull.resources.sources import RegistryAccess

_HELPER_TIMEOUT_S = 30.0
_HUB = "https://index.docker.io/v1/"
_HUB_HOSTS = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_TOKEN_USER = "<token>"  # noqa: S105 - what helpers say when the secret is an identity token
_NOT_FOUND = "credentials not found"

Lookup = Callable[[str], RegistryAccess | None]


class _Auth(msgspec.Struct):
    auth: str | None = None
    username: str | None = None
    password: str | None = None
    identitytoken: str | None = None
    registrytoken: str | None = None


class _DockerConfig(msgspec.Struct):
    """Null is nothing, as Go decodes it."""

    auths: dict[str, _Auth | None] | None = None
    credsStore: str | None = None
    credHelpers: dict[str, str | None] | None = None


class _HelperAnswer(msgspec.Struct):
    Username: str | None = None
    Secret: str | None = None


def load_docker_config(path: Path) -> Lookup:
    """Read `path` now; the lookup asks helpers whenever it is called.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    try:
        config = msgspec.json.decode(path.read_bytes(), type=_DockerConfig)
    except OSError as error:
        raise ConfigurationError(f"Docker config {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"Docker config {path} is not valid: {error}") from error
    auths, helpers = config.auths or {}, config.credHelpers or {}

    def lookup(host: str) -> RegistryAccess | None:
        named = next((helpers[key] for key in _by_fit(host, helpers) if helpers[key]), None)
        helper = named or config.credsStore
        if helper:
            found = _ask_helper(helper, host)
            if found is not None:
                return found
        for key in _by_fit(host, auths):
            auth = auths[key]
            found = _from_file(path, host, auth) if auth is not None else None
            if found is not None:
                return found
        return None

    return lookup


def _by_fit(host: str, keys: Iterable[str]) -> list[str]:
    """The keys that mean this host, the best first: its name, with a scheme or the path of an API
    (Docker), then a pattern for its labels (kubelet), then a part of its repositories (podman)."""
    ranked = [(rank, key) for key in keys if (rank := _fit(host, key)) is not None]
    return [key for _, key in sorted(ranked)]


def _fit(host: str, key: str) -> tuple[int, int] | None:
    if key == host:
        return 0, 0
    name, _, path = key.partition("://")[2].partition("/") if "://" in key else key.partition("/")
    is_hub = host in _HUB_HOSTS and name in _HUB_HOSTS
    is_all = path.strip("/") in {"", "v1", "v2"}
    if name == host or is_hub:
        return (1, 0) if is_all else (3, len(path))
    return (2, -len(name)) if is_all and _is_pattern_of(name, host) else None


def _is_pattern_of(pattern: str, host: str) -> bool:
    """kubelet's rule: a `*` stands for something within one label."""
    labels, wanted = host.split("."), pattern.split(".")
    return (
        "*" in pattern
        and len(labels) == len(wanted)
        and all(map(fnmatch.fnmatchcase, labels, wanted))
    )


def _from_file(path: Path, host: str, auth: _Auth) -> RegistryAccess | None:
    username, password = auth.username or "", auth.password or ""
    if auth.auth:
        username, password = _decoded(path, host, auth.auth)
    if token := auth.registrytoken or auth.identitytoken:
        return _access(host, username=username or None, token=token)
    if username:
        return _access(host, username=username, password=password)
    return None


def _decoded(path: Path, host: str, auth: str) -> tuple[str, str]:
    """Base64 as Go and kubelet read it: lines may be wrapped, and padding may be missing."""
    text = "".join(auth.split())
    try:
        plain = base64.b64decode(text + "=" * (-len(text) % 4), validate=True).decode()
    except (binascii.Error, ValueError):
        plain = ""
    username, colon, password = plain.rstrip("\0").partition(":")
    if not colon or not username:
        raise ConfigurationError(
            f"Docker config {path}: the auth of {host} is not base64 of name:password"
        )
    return username, password


def _ask_helper(name: str, host: str) -> RegistryAccess | None:
    if "/" in name:
        raise ConfigurationError(f"credential helper {name!r}: a name, not a path, is expected")
    program = f"docker-credential-{name}"
    server = _HUB if host == "docker.io" else host
    try:
        done = subprocess.run(
            [program, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=_HELPER_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise AccessDenied(
            f"registry {host}: its credential helper {program} is not on PATH: install it"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise AccessDenied(
            f"registry {host}: {program} did not answer within {_HELPER_TIMEOUT_S:.0f} s"
        ) from error
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        if _NOT_FOUND in said:
            return None
        raise AccessDenied(f"registry {host}: {program} failed: {said[:300]}")
    if not done.stdout.strip():
        return None
    try:
        answer = msgspec.json.decode(done.stdout, type=_HelperAnswer)
    except msgspec.DecodeError as error:
        raise AccessDenied(f"registry {host}: {program} answered something else") from error
    if not answer.Secret:
        return None  # what some helpers say of a registry that they do not know
    if answer.Username == _TOKEN_USER:
        return _access(host, token=answer.Secret)
    return _access(host, username=answer.Username, password=answer.Secret)


def _access(
    host: str,
    *,
    username: str | None = None,
    password: str | None = None,
    token: str | None = None,
) -> RegistryAccess:
    return RegistryAccess(
        host=host,
        username=username,
        password=password,
        token=token,
    )
