from __future__ import annotations

import json
from pathlib import Path

import pytest

from zeropull.registry.registries import Registries
from zeropull.resources.settings import RegistrySettings, Settings


def docker_config(folder: Path, document: object) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(document))
    return str(path)


AUTH = {"auth": "dXNlcjpwYXNz"}


def test_a_configured_registry_has_its_settings_and_dockers_credentials(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("PEM")
    table = RegistrySettings(ca_file=str(tmp_path / "ca.pem"), mirrors=("http://m.example:5000",))
    auths = {"auths": {"r.example": AUTH, "m.example:5000": AUTH}}
    settings = Settings(
        registries={"r.example": table}, docker_config=docker_config(tmp_path, auths)
    )
    access = Registries(settings).access("r.example")
    assert access is not None
    assert (access.ca, access.username, access.is_configured) == ("PEM", "user", True)
    (mirror,) = access.mirrors
    assert (mirror.access.username, mirror.access.plain_http) == ("user", True)
    assert mirror.access.is_configured


def test_configured_credentials_go_before_dockers(tmp_path: Path) -> None:
    table = RegistrySettings(username="me", password="mine")
    path = docker_config(tmp_path, {"auths": {"r.example": AUTH}})
    access = Registries(Settings(registries={"r.example": table}, docker_config=path)).access(
        "r.example"
    )
    assert access is not None
    assert (access.username, access.password) == ("me", "mine")


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ([], "is not valid"),
        ({"credHelpers": {"r.example": "absent-from-path"}}, "is not on PATH"),
        ({"auths": {"r.example": {"auth": "%"}}}, "is not base64 of name:password"),
    ],
)
def test_why_there_are_no_credentials_is_kept(
    tmp_path: Path, document: object, problem: str
) -> None:
    access = Registries(Settings(docker_config=docker_config(tmp_path, document))).access(
        "r.example"
    )
    assert access is not None
    assert problem in (access.problem or "")
    assert access.username is None


def test_an_image_finds_what_was_known_of_its_registry(tmp_path: Path) -> None:
    path = docker_config(tmp_path, {"auths": {"r.example": AUTH}})
    registries = Registries(Settings(docker_config=path))
    first = registries.access_for("r.example/a:1")
    assert first is not None
    assert first.username == "user"
    Path(path).unlink()
    assert registries.access_for("r.example/a:2") == first
