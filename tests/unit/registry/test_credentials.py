from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from zeropull.errors import AccessDenied, ConfigurationError
from zeropull.registry.credentials import load_docker_config

_HELPER = """#!/bin/sh
read server
case "$server" in
  refused) echo "credentials not found in native keychain"; exit 1 ;;
  broken) echo "boom" >&2; exit 2 ;;
  identity) echo '{"Username": "<token>", "Secret": "refresh"}' ;;
  *) n=$(cat counter 2>/dev/null || echo 0); n=$((n + 1)); echo $n > counter
     printf '{"ServerURL": "%s", "Username": "AWS", "Secret": "token-%s"}' "$server" "$n" ;;
esac
"""


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "docker-credential-fake"
    program.write_text(_HELPER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(folder: Path, document: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(document))
    return path


def test_auths_hold_name_and_password(tmp_path: Path) -> None:
    auth = base64.b64encode(b"me:p:w").decode()
    lookup = load_docker_config(config(tmp_path, {"auths": {"https://r.io/v2/": {"auth": auth}}}))
    found = lookup("r.io")
    assert found is not None
    assert (found.username, found.password) == ("me", "p:w")
    assert lookup("other.io") is None


def test_docker_hub_is_found_under_its_old_name(tmp_path: Path) -> None:
    auth = base64.b64encode(b"me:pw").decode()
    document = {"auths": {"https://index.docker.io/v1/": {"auth": auth}}}
    found = load_docker_config(config(tmp_path, document))("docker.io")
    assert found is not None
    assert found.username == "me"


def test_helpers_are_asked_anew_each_time(helper: Path) -> None:
    lookup = load_docker_config(config(helper, {"credHelpers": {"1.ecr.aws": "fake"}}))
    secrets = [found.password for found in (lookup("1.ecr.aws"), lookup("1.ecr.aws")) if found]
    assert secrets == ["token-1", "token-2"]
    assert lookup("other.io") is None


def test_a_store_that_knows_nothing_gives_way_to_auths(helper: Path) -> None:
    auth = base64.b64encode(b"me:pw").decode()
    document = {"credsStore": "fake", "auths": {"refused": {"auth": auth}}}
    found = load_docker_config(config(helper, document))("refused")
    assert found is not None
    assert found.username == "me"


def test_an_identity_token_is_not_a_password(helper: Path) -> None:
    found = load_docker_config(config(helper, {"credsStore": "fake"}))("identity")
    assert found is not None
    assert (found.token, found.username) == ("refresh", None)


def test_a_helper_that_fails_says_why(helper: Path) -> None:
    with pytest.raises(AccessDenied, match="docker-credential-fake failed: boom"):
        load_docker_config(config(helper, {"credsStore": "fake"}))("broken")


def test_a_missing_helper_names_the_program(helper: Path) -> None:
    with pytest.raises(AccessDenied, match="docker-credential-absent is not on PATH"):
        load_docker_config(config(helper, {"credHelpers": {"r.io": "absent"}}))("r.io")


def test_a_broken_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        load_docker_config(config(tmp_path, {"auths": []}))
    with pytest.raises(ConfigurationError):
        load_docker_config(tmp_path / "absent.json")
