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
  silent) ;;
  empty) echo '{"ServerURL": "", "Username": "", "Secret": ""}' ;;
  null) echo '{"Username": null, "Secret": null}' ;;
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


def entry(key: str = "r.example", auth: str = "dXNlcjpwYXNz", **members: object) -> object:
    return {"auths": {key: {"auth": auth} | members}}


@pytest.mark.parametrize(
    "document",
    [
        entry(auth="dXNl\r\ncjpwYXNz\n"),
        entry("https://r.example/v2/project"),
        entry("https://r.example/v2"),
        entry("http://r.example"),
        entry("r.example/"),
        entry("r.example/project"),
        entry("*.example"),
        entry("r.ex*e"),
        entry(username=None, password=None, identitytoken=None),
        {"auths": {"other.example": None, "r.example": {"username": "user", "password": "pass"}}},
        {"auths": {"r.example": {"auth": "dXNlcjpwYXNz"}}, "credHelpers": None, "credsStore": None},
    ],
)
def test_docker_configs_are_read_as_go_reads_them(tmp_path: Path, document: object) -> None:
    found = load_docker_config(config(tmp_path, document))("r.example")
    assert found is not None
    assert (found.username, found.password) == ("user", "pass")


def test_padding_may_be_missing(tmp_path: Path) -> None:
    auth = base64.b64encode(b"user:pass1").decode().rstrip("=")
    found = load_docker_config(config(tmp_path, entry(auth=auth)))("r.example")
    assert found is not None
    assert found.password == "pass1"


@pytest.mark.parametrize("key", ["r.example.org", "*", "*.*.example", "xr.example", "example"])
def test_keys_of_other_hosts_are_of_no_use(tmp_path: Path, key: str) -> None:
    assert load_docker_config(config(tmp_path, entry(key)))("r.example") is None


def test_the_best_of_several_keys_wins(tmp_path: Path) -> None:
    keys = ["*.example", "r.example/team", "https://r.example/v1/", "r.example"]
    for count in range(len(keys), 0, -1):
        auths = {
            key: {"auth": base64.b64encode(f"u:{key}".encode()).decode()} for key in keys[:count]
        }
        found = load_docker_config(config(tmp_path, {"auths": auths}))("r.example")
        assert found is not None
        assert found.password == {4: keys[3], 3: keys[2], 2: keys[0], 1: keys[0]}[count]


def test_null_is_nothing(tmp_path: Path) -> None:
    lookup = load_docker_config(config(tmp_path, {"auths": None, "credHelpers": {}}))
    assert lookup("r.example") is None


def test_an_auth_without_a_name_is_told(tmp_path: Path) -> None:
    for auth in ("bm8tY29sb24=", "OnBhc3M=", "%%%"):
        lookup = load_docker_config(config(tmp_path, entry(auth=auth)))
        with pytest.raises(ConfigurationError, match=r"auth of r\.example is not base64"):
            lookup("r.example")


@pytest.mark.parametrize("host", ["silent", "empty", "null"])
def test_a_helper_that_answers_nothing_gives_way_to_auths(helper: Path, host: str) -> None:
    document = {"credsStore": "fake", "auths": {host: {"auth": "dXNlcjpwYXNz"}}}
    found = load_docker_config(config(helper, document))(host)
    assert found is not None
    assert found.username == "user"
    assert load_docker_config(config(helper, {"credsStore": "fake"}))(host) is None


def test_a_helper_for_docker_hub_may_stand_under_any_of_its_names(helper: Path) -> None:
    for key in ("https://index.docker.io/v1/", "index.docker.io", "docker.io"):
        found = load_docker_config(config(helper, {"credHelpers": {key: "fake"}}))("docker.io")
        assert found is not None
        assert found.username == "AWS"
