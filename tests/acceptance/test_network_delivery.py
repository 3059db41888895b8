"""Instances that share no disk with the control plane: their image cache crosses their link."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.acceptance.images import server_image_with
from tests.acceptance.serving import GPU, Server, running_server, wait_until
from tests.fixtures.images import push_image
from tests.fixtures.mounting import mounts_under
from tests.fixtures.registry import Registry

FLEET = {"simulate_accelerators": True, "delivery": "network"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("zp"), fleet=FLEET) as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    yield shared
    shared.clear()


def stage(server: Server, name: str, stage_name: str) -> dict[str, object]:
    launches = server.admin(f"endpoints/{name}/timeline")["launches"]
    newest = max(launches, key=lambda launch: launch["began_s"])
    [found] = [each for each in newest["stages"] if each["stage"] == stage_name]
    return dict(found)


def test_a_new_instance_starts_over_its_link_without_the_registry(
    server: Server, registry: Registry
) -> None:
    image = server_image_with("far")
    push_image(registry.address, "far", "1", image)
    server.deploy("far", f"{registry.address}/far:1", GPU)
    server.wait_served("far")
    server.wait_cached("far")
    registry.reset()
    registry.switch_off()
    try:
        server.scale_and_wait("far", 2)
    finally:
        registry.switch_on()
    assert registry.counts.requests == []
    image_stage = stage(server, "far", "image")
    layers = len(image.layers)
    assert image_stage["path"] == "cached"
    assert (image_stage["layers_from_cache"], image_stage["layers_total"]) == (layers, layers)
    by_source = image_stage["bytes_by_source"]
    assert isinstance(by_source, dict)
    assert by_source["network_cache"] > 0
    assert by_source.get("registry", 0) == 0
    health = stage(server, "far", "health")
    assert "from the network cache" in str(health["detail"])
    for _ in range(4):
        assert server.invoke("far") == b"hello"

    launches = server.admin("endpoints/far/timeline")["launches"]
    second = max(launches, key=lambda launch: launch["began_s"])["instance_id"]
    volumes = server.names.instance(second).disk_dir / "volumes"
    assert not [point for point in mounts_under(volumes) if point == str(volumes / "1")]
    wait_until(
        "every layer is whole, so that the node depends on nobody",
        lambda: not list(volumes.rglob("arriving.map")),
    )
    grants = server.names.state_dir / "source" / "grants"
    assert second in {json.loads(path.read_text())["instance_id"] for path in grants.iterdir()}
    server.scale_and_wait("far", 1)
    wait_until("a grant goes with its instance", lambda: len(list(grants.iterdir())) == 1)
