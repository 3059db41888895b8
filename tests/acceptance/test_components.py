"""Inference components: copies share instances, scale apart, and download what is not there yet."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from botocore.exceptions import ClientError

from tests.acceptance.componentuser import MODEL_BYTES, TYPES, ComponentUser, fetched_bytes
from tests.acceptance.images import server_image_with
from tests.acceptance.serving import Server, running_server, stage_of, wait_until
from tests.fixtures.images import push_image
from tests.fixtures.registry import Registry


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {**TYPES, "endpoints": {"retry_s": 0.5, "idle_release_s": 3.0}}
    folder = tmp_path_factory.mktemp("zp")
    with running_server(folder, **settings) as server:
        yield server


@pytest.fixture
def user(server: Server) -> ComponentUser:
    return ComponentUser(server)


def test_three_components_with_two_images_and_two_models_scale_apart(
    server: Server, user: ComponentUser, registry: Registry
) -> None:
    first, second = f"{registry.address}/server:1", f"{registry.address}/second:1"
    push_image(registry.address, "second", "1", server_image_with("second"))
    one, two = user.make_model("one"), user.make_model("two")
    user.make_endpoint("shared")
    user.create("shared", "a", first, one)
    user.create("shared", "b", second, one)
    user.create("shared", "c", first, two)
    for name in "abc":
        user.wait_serves(name)
        assert user.invoke("shared", name) == b"hello"
    models = {name: json.loads(user.invoke("shared", name, CustomAttributes="show=models"))
              for name in "abc"}  # fmt: skip
    assert models == {
        "a": {"one.bin": MODEL_BYTES},
        "b": {"one.bin": MODEL_BYTES},
        "c": {"two.bin": MODEL_BYTES},
    }
    assert len(server.instances("shared")) == 1
    registry.reset()
    user.scale("a", 2)
    user.wait_serves("a", 2)
    second_copy = user.launches("shared", "a")[-1]
    assert not second_copy["new_instance"]
    assert fetched_bytes(second_copy) == 0
    assert registry.counts.bytes_served == 0
    assert stage_of(second_copy, "image")["layers_total"] >= 3
    assert user.describe("b")["RuntimeConfig"]["CurrentCopyCount"] == 1
    user.scale("a", 0)
    user.wait_serves("a", 0)
    with pytest.raises(ClientError, match="has no capacity to process this request"):
        user.invoke("shared", "a")
    assert user.invoke("shared", "b") == b"hello"
    with pytest.raises(ClientError, match="Inference Component Name header is required"):
        server.invoke("shared")
    user.scale("a", 1)
    user.wait_serves("a", 1)
    assert fetched_bytes(user.launches("shared", "a")[-1]) == 0
    user.delete("b")
    assert user.invoke("shared", "c") == b"hello"
    server.delete_endpoint("shared")
    wait_until("its components are gone", lambda: not user.exists("a") and not user.exists("c"))
    assert server.left_behind() == {}
