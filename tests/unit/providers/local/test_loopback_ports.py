from __future__ import annotations

from tests.unit.reconcilers.endpoint_world import deployment, endpoint
from zeropull.providers.local.loopback_ports import loopback_ports
from zeropull.resources.settings import RegistrySettings


def test_nodes_reach_the_mirrors_on_loopback_of_their_registries() -> None:
    mirrors = ("http://127.0.0.1:5001", "https://localhost/hub", "https://m.example:5002")
    registries = {"r.example": RegistrySettings(mirrors=mirrors)}
    wanted = endpoint(deployment(image="r.example/model:1"))
    assert loopback_ports(wanted, {}, (), registries) == {5001, 443}
    other = endpoint(deployment(image="other.example/model:1"))
    assert loopback_ports(other, {}, (), registries) == frozenset()
