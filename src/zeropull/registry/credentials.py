"""Credentials from a Docker config file (https://docs.docker.com/reference/cli/docker/login/).

`auths` holds them in the file, `credsStore` and `credHelpers` name programs
(`docker-credential-<name>`) that are asked anew each time, since what they hand out may expire.
"""

from __future__ import annotations

import base64
import binascii
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec

from zeropull.errors import AccessDenied, ConfigurationError
from zeropull.registry.http import is_loopback, split_host
from zeropull.resources.sources import RegistryAccess

_HELPER_TIMEOUT_S = 30.0
_HUB = "https://index.docker.io/v1/"
_TOKEN_USER = "<token>"  # noqa: S105 - what helpers say when the secret is an identity token
_NOT_FOUND = "credentials not found"

Lookup = Callable[[str], RegistryAccess | None]


class _Auth(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


class _DockerConfig(msgspec.Struct):
    auths: dict[str, _Auth] = {}
    credsStore: str = ""
    credHelpers: dict[str, str] = {}


class _HelperAnswer(msgspec.Struct):
    Username: str = ""
    Secret: str = ""


def load_docker_config(path: Path) -> Lookup:
    """Read `path` now; the lookup asks helpers whenever it is called.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    try:
        config = msgspec.json.decode(path.read_bytes(), type=_DockerConfig)
    except OSError as error:
        raise ConfigurationError(f"Docker config {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"Docker config {path} is not valid: {error}") from error

    def lookup(host: str) -> RegistryAccess | None:
        helper = config.credHelpers.get(host) or config.credsStore
        if helper:
            found = _ask_helper(helper, host)
            if found is not None:
                return found
        for key in _keys_of(host):
            if key in config.auths:
                return _from_file(path, host, config.auths[key])
        return None

    return lookup


def _keys_of(host: str) -> list[str]:
    keys = [host, f"https://{host}", f"http://{host}", f"https://{host}/", f"https://{host}/v2/"]
    keys.append(f"https://{host}/v1/")
    if host in {"docker.io", "index.docker.io", "registry-1.docker.io"}:
        keys += [_HUB, "index.docker.io", "docker.io", "registry-1.docker.io"]
    return keys


def _from_file(path: Path, host: str, auth: _Auth) -> RegistryAccess | None:
    username, password = auth.username, auth.password
    if auth.auth:
        try:
            decoded = base64.b64decode(auth.auth, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"Docker config {path}: the auth of {host} is not base64 of name:password"
            ) from error
        username, _, password = decoded.rstrip("\0").partition(":")
    if token := auth.registrytoken or auth.identitytoken:
        return _access(host, token=token)
    if username:
        return _access(host, username=username, password=password)
    return None


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
    try:
        answer = msgspec.json.decode(done.stdout, type=_HelperAnswer)
    except msgspec.DecodeError as error:
        raise AccessDenied(f"registry {host}: {program} answered something else") from error
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
        plain_http=is_loopback(split_host(host)),
        username=username,
        password=password,
        token=token,
    )
