from __future__ import annotations

from zeropull.registry.endpoints import endpoints_of
from zeropull.resources.sources import RegistryAccess, RegistryMirror


def urls(registry: str, access: RegistryAccess | None = None) -> list[str]:
    return [each.url("a/b", "manifests/1") for each in endpoints_of(registry, access)]


def test_docker_hub_has_another_server() -> None:
    assert urls("docker.io") == ["https://registry-1.docker.io/v2/a/b/manifests/1"]


def test_mirrors_come_first_and_learn_whom_they_stand_for() -> None:
    mirrors = tuple(
        RegistryMirror(url, RegistryAccess("m"))
        for url in ("https://m.example", "http://n.example:5000/v2", "https://o.example/hub/")
    )
    assert urls("docker.io", RegistryAccess("docker.io", mirrors=mirrors)) == [
        "https://m.example/v2/a/b/manifests/1?ns=docker.io",
        "http://n.example:5000/v2/a/b/manifests/1?ns=docker.io",
        "https://o.example/hub/v2/a/b/manifests/1?ns=docker.io",
        "https://registry-1.docker.io/v2/a/b/manifests/1",
    ]
