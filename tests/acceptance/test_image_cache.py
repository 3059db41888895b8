"""What the image cache promises: instances without the registry, isolation, and nothing left."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.component_user import ComponentUser
from tests.acceptance.images import server_image_with
from tests.acceptance.serving import GPU, Load, Server, running_server, wait_until
from tests.fixtures.images import push_image
from tests.fixtures.mounting import mounts_under
from tests.fixtures.registry import USERNAME, Registry, running_registry
from zeropull.layers.verify import verify_layer


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("zp")) as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    """Without any endpoint, whatever the test before has done."""
    yield shared
    shared.clear()


def damage(path: Path, offset: int | None = None) -> None:
    """Flip one byte, in a file of its own: other hard links of it stay as they are."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if offset is None else offset] ^= 0xFF
    path.unlink()
    path.write_bytes(content)


def launched_in_order(server: Server, name: str) -> list[str]:
    """Its instances, the oldest first."""
    launches = server.admin(f"endpoints/{name}/timeline")["launches"]
    return [one["instance_id"] for one in sorted(launches, key=lambda one: one["began_s"])]


def inodes(folder: Path) -> set[tuple[int, int]]:
    return {
        (status.st_dev, status.st_ino)
        for path in folder.rglob("*")
        if path.is_file() and (status := path.stat())
    }


def test_a_new_instance_starts_from_the_cache_while_the_registry_is_away(
    server: Server, registry: Registry
) -> None:
    image = server_image_with("alone")
    push_image(registry.address, "alone", "1", image)
    server.deploy("alone", f"{registry.address}/alone:1", GPU)
    server.wait_served("alone")
    server.wait_cached("alone")
    registry.reset()
    registry.switch_off()
    try:
        server.scale_and_wait("alone", 2)
    finally:
        registry.switch_on()
    assert registry.counts.requests == []
    assert registry.counts.connections == 0
    assert registry.counts.bytes_served == 0
    stage = server.image_stage("alone")
    layers = len(image.layers)
    assert stage["bytes_by_source"].get("registry", 0) == 0
    assert (stage["layers_from_cache"], stage["layers_total"]) == (layers, layers)
    evidence = f"{layers}/{layers} layers from the cache (100.0 %), 0 B from the registry"
    assert stage["detail"] == evidence
    assert server.invoke("alone") == b"hello"
    first, second = launched_in_order(server, "alone")
    logs = (server.names.instance(second).disk_dir / "logs").glob("*agent*.log")
    told = [line for log in logs for line in log.read_text().splitlines() if evidence in line]
    assert any("image is available" in line for line in told), told

    def counted() -> bool:
        lines = set(server.metrics().splitlines())
        return {
            f'zeropull_node_images_total{{instance="{first}",path="fallback"}} 1.0',
            f'zeropull_node_image_fallbacks_total{{instance="{first}",reason="no_generation"}} 1.0',
            f'zeropull_node_images_total{{instance="{second}",path="cached"}} 1.0',
            f'zeropull_node_registry_bytes_total{{instance="{second}"}} 0.0',
            f'zeropull_node_verification_failures_total{{instance="{second}"}} 0.0',
            f'zeropull_snapshotter_hits_total{{instance="{second}"}} {float(layers)}',
            f'zeropull_snapshotter_misses_total{{instance="{second}"}} 0.0',
        } <= lines and any(
            line.startswith(f'zeropull_snapshotter_hit_bytes_total{{instance="{second}"}}')
            for line in lines
        )

    wait_until("Prometheus is told of hits, misses, bytes and fallbacks", counted)


@pytest.mark.parametrize("damaged_file", ["meta.erofs", "layer.json", "generation.json"])
def test_a_flipped_byte_in_a_generation_is_noticed_and_the_image_pulled(
    server: Server, registry: Registry, damaged_file: str
) -> None:
    name = f"flipped-{damaged_file.partition('.')[0]}"
    server.deploy(name, f"{registry.address}/server:1", GPU)
    server.wait_served(name)
    generation = server.wait_cached(name)
    files = sorted(generation.rglob(damaged_file), key=lambda path: path.stat().st_size)
    damage(files[-1])
    registry.reset()
    server.scale_and_wait(name, 2)
    # The registry's own count: a launch that had to begin anew tells of its last attempt only.
    fetched = registry.counts.matching("/blobs/")
    assert fetched, f"{server.image_stage(name)}\n{server.log()}"
    for _ in range(4):  # both instances take their turns
        assert server.invoke(name) == b"hello"


def flip_on_the_disk(path: Path) -> None:
    """Flip a bit of the last byte in its inode, and so in every hard link of it."""
    with path.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))


def test_a_bit_that_flips_under_node_and_generation_is_gone_from_the_next_generation(
    server: Server, registry: Registry
) -> None:
    """Both have the layer in one inode: what is built of the node's copy is as bad as it."""
    server.deploy("inode", f"{registry.address}/server:1", GPU)
    server.wait_served("inode")
    first = server.wait_cached("inode")
    data = max(first.rglob("data.erofs"), key=lambda path: path.stat().st_size)
    chain_id = f"sha256:{data.parent.name}"
    verify_layer(data.parent, chain_id)
    flip_on_the_disk(data)
    server.scale_and_wait("inode", 2)  # the new node has the generation mounted, and verifies it

    newest = server.wait_cached("inode", generation=2)
    verify_layer(newest / "layers" / data.parent.name, chain_id)
    for _ in range(4):
        assert server.invoke("inode") == b"hello"


def test_a_tag_that_moved_concerns_new_deployments_only(server: Server, registry: Registry) -> None:
    first, second = server_image_with("first"), server_image_with("second")
    push_image(registry.address, "moving", "latest", first)
    server.deploy("moving", f"{registry.address}/moving:latest", GPU)
    server.wait_served("moving")
    server.wait_cached("moving")
    push_image(registry.address, "moving", "latest", second)
    server.scale_and_wait("moving", 2)
    variant = server.sagemaker.describe_endpoint(EndpointName="moving")["ProductionVariants"][0]
    deployed = variant["DeployedImages"][0]
    assert deployed["SpecifiedImage"] == f"{registry.address}/moving:latest"
    assert deployed["ResolvedImage"].endswith(first.digest)
    for _ in range(4):
        assert server.show("moving", "environment")["MARK"] == "first"

    server.deploy("moving-again", f"{registry.address}/moving:latest", GPU)
    server.wait_served("moving-again")
    assert server.show("moving-again", "environment")["MARK"] == "second"
    assert server.show("moving", "environment")["MARK"] == "first"


def test_an_update_to_another_image_fails_no_request(server: Server, registry: Registry) -> None:
    push_image(registry.address, "next", "1", server_image_with("next"))
    server.deploy("updated", f"{registry.address}/server:1", GPU)
    server.wait_served("updated")
    before = server.instances("updated")
    server.make_config("next", f"{registry.address}/next:1", GPU)
    with Load(server, "updated").running() as load:
        server.sagemaker.update_endpoint(EndpointName="updated", EndpointConfigName="next")
        server.wait_served("updated")
        wait_until(
            "the old instance is gone", lambda: not set(before) & set(server.instances("updated"))
        )
        load.wait_for_more()
    assert load.failed == []
    assert server.show("updated", "environment")["MARK"] == "next"


def test_the_first_deployment_of_two_instances_reads_each_layer_once(
    server: Server, registry: Registry
) -> None:
    image = server_image_with("pair")
    push_image(registry.address, "pair", "1", image)
    registry.reset()
    server.deploy("pair", f"{registry.address}/pair:1", GPU, InitialInstanceCount=2)
    server.wait_served("pair", 2)
    for layer in image.layers:
        assert len(registry.counts.matching(f"GET /v2/pair/blobs/{layer.digest}")) == 1
    assert registry.counts.bytes_served < image.compressed_bytes * 1.02 + 20_000


def test_endpoints_share_no_file_and_a_deleted_one_leaves_none(
    server: Server, registry: Registry
) -> None:
    model = ComponentUser(server).make_model("of-both")
    for name in ("one", "other"):
        server.deploy(name, f"{registry.address}/server:1", GPU, model=model)
    places = {}
    for name in ("one", "other"):
        server.wait_served(name)
        generation = server.wait_cached(name)
        disks = [server.folder / "state/instances" / i for i in server.instances(name)]
        places[name] = [generation.parents[1], *disks]
    found = {
        name: set().union(*(inodes(folder) for folder in folders))
        for name, folders in places.items()
    }
    assert found["one"] and found["other"]
    assert not found["one"] & found["other"]

    instances = server.instances("one")
    server.delete_endpoint("one")
    wait_until("the files are gone", lambda: not any(path.exists() for path in places["one"]))
    for instance_id in instances:
        assert not mounts_under(server.names.run_dir / instance_id)
        assert not any(instance_id in thing for things in server.left_behind().values()
                       for thing in things)  # fmt: skip
    assert server.invoke("other") == b"hello"


def test_a_private_registry_opens_with_the_docker_config_file(tmp_path: Path) -> None:
    login = tmp_path / "docker"
    login.mkdir()
    with running_registry(password_file=True) as private:
        push_image(
            private.address, "secret", "1", server_image_with("secret"),
            credentials=private.credentials,
        )  # fmt: skip
        config = login / "config.json"
        config.write_text(json.dumps({"auths": {}}))
        with running_server(tmp_path, top={"docker_config": str(config)}) as server:
            server.deploy("locked", f"{private.address}/secret:1", GPU)
            reason = server.wait_failed("locked")
            assert private.address in reason
            assert "credentials" in reason
            assert "docker login" in reason

            auth = {"auth": login_of(private)}
            config.write_text(json.dumps({"auths": {private.address: auth}}))
            server.delete_all("locked")
            server.deploy("locked", f"{private.address}/secret:1", GPU)
            server.wait_served("locked")
            assert server.show("locked", "environment")["MARK"] == "secret"


def login_of(private: Registry) -> str:
    return base64.b64encode(f"{USERNAME}:{private.password}".encode()).decode()
