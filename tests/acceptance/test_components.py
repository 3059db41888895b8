"""Inference components: copies share instances, scale apart, and download what is not there yet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.acceptance.component_user import (
    MODEL_BYTES,
    TYPES,
    ComponentLoad,
    ComponentUser,
    fetched_bytes,
)
from tests.acceptance.images import server_image_with
from tests.acceptance.serving import Server, running_server, stage_of, wait_until
from tests.fixtures.images import push_image
from tests.fixtures.registry import Registry

REASON = "FailureReason"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings: dict[str, Any] = {**TYPES, "endpoints": {"retry_s": 0.5, "idle_release_s": 3.0}}
    folder = tmp_path_factory.mktemp("zp")
    with running_server(folder, **settings) as server:
        yield server


@pytest.fixture
def user(server: Server) -> Iterator[ComponentUser]:
    user = ComponentUser(server)
    yield user
    user.clean_up()


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
    stream = server.runtime.invoke_endpoint_with_response_stream(
        EndpointName="shared",
        InferenceComponentName="b",
        Body=b"x",
        CustomAttributes="chunks=2",
    )["Body"]
    assert b"".join(event["PayloadPart"]["Bytes"] for event in stream) == b"0:x\n1:x\n"
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


def test_what_is_not_to_be_cached_goes_with_its_last_copy_and_comes_again(
    server: Server, user: ComponentUser, registry: Registry
) -> None:
    push_image(registry.address, "fleeting", "1", server_image_with("fleeting", 3_000_000))
    image, model = f"{registry.address}/fleeting:1", user.make_model("fleeting")
    # The endpoint's image cache is another matter: it would have the image on its volume.
    user.make_endpoint("caching", maximum=1, Tags={"zeropull:image-path": "fallback"})
    user.create("caching", "kept", f"{registry.address}/server:1", model)
    user.wait_serves("kept")
    user.create("caching", "fleeting", image, model, DataCacheConfig={"EnableCaching": False})
    user.wait_serves("fleeting")
    (instance,) = server.instances("caching")
    disk = server.folder / "state/instances" / instance

    def here() -> tuple[int, int]:
        """Layers and model artifacts on the node."""
        layers = [p for p in (disk / "layers").iterdir() if not p.name.startswith(".")]
        return len(layers), len(list((disk / "models").iterdir()))

    assert here() == (4, 2)  # three layers are of both images; each component has the model
    assert not user.describe("fleeting")["Specification"]["DataCacheConfig"]["EnableCaching"]
    # While one copy has the image another one uses it too; the model it downloads for itself.
    registry.reset()
    user.scale("fleeting", 2)
    user.wait_serves("fleeting", 2)
    second = user.launches("caching", "fleeting")[-1]
    assert registry.counts.bytes_served == 0
    assert stage_of(second, "model")["bytes_by_source"]["model_store"] > MODEL_BYTES
    assert here() == (4, 3)
    user.scale("fleeting", 0)
    user.wait_serves("fleeting", 0)
    wait_until("image and model have gone", lambda: here() == (3, 1))
    user.scale("fleeting", 1)
    user.wait_serves("fleeting", 1)
    again = user.launches("caching", "fleeting")[-1]
    assert stage_of(again, "image")["bytes_by_source"]["registry"] > 3_000_000
    assert stage_of(again, "model")["bytes_by_source"]["model_store"] > MODEL_BYTES
    assert user.invoke("caching", "kept") == user.invoke("caching", "fleeting") == b"hello"


def test_a_plain_containerd_node_keeps_image_and_model_for_the_copy_that_comes_back(
    server: Server, user: ComponentUser, registry: Registry
) -> None:
    model = user.make_model("returning")
    user.make_endpoint("plain", maximum=1, Tags={"zeropull:image-path": "containerd"})
    user.create("plain", "returning", f"{registry.address}/server:1", model)
    user.wait_serves("returning")
    first = stage_of(user.launches("plain", "returning")[-1], "image")
    assert first["path"] == "containerd"
    assert first["bytes_by_source"]["registry"] > 0
    user.scale("returning", 0)
    user.wait_serves("returning", 0)
    registry.reset()
    (instance,) = server.instances("plain")
    server.kill(server.daemon_pid(instance, "agent"))  # the next one has to know of it too
    user.scale("returning", 1)
    user.wait_serves("returning", 1)
    again = user.launches("plain", "returning")[-1]
    assert stage_of(again, "image")["path"] == "containerd"
    assert fetched_bytes(again) == 0
    assert registry.counts.bytes_served == 0


def test_two_components_want_the_last_accelerator_and_one_waits_for_it(
    server: Server, user: ComponentUser, registry: Registry
) -> None:
    image = f"{registry.address}/server:1"
    user.make_endpoint("full", maximum=1)
    user.create("full", "holder", image, accelerators=2)
    user.wait_serves("holder")
    given = json.loads(user.invoke("full", "holder", CustomAttributes="show=environment"))
    assert given["ZEROPULL_SIMULATED_ACCELERATORS"] == "2"
    user.create("full", "waiter", image, accelerators=1)
    reason = wait_until("it says for what it waits", lambda: user.describe("waiter").get(REASON))
    assert "not enough hardware resources" in reason
    assert "1 accelerators; at most" in reason
    assert "0 accelerators are free on one of 1 instances" in reason
    assert "MaxInstanceCount is 1" in reason
    assert user.describe("waiter")["InferenceComponentStatus"] == "Creating"
    with pytest.raises(ClientError, match="while it is in state CREATE_IN_PROGRESS"):
        user.sagemaker.delete_inference_component(InferenceComponentName="waiter")
    assert user.invoke("full", "holder") == b"hello"
    user.delete("holder")
    user.wait_serves("waiter")
    assert "FailureReason" not in user.describe("waiter")
    with pytest.raises(ClientError, match="A copy needs 3 of 2 accelerators of an empty"):
        user.create("full", "never", image, accelerators=3)


def test_what_fits_nowhere_makes_an_instance_which_goes_when_it_is_idle(
    server: Server, user: ComponentUser, registry: Registry
) -> None:
    user.make_endpoint("growing", minimum=0, maximum=3, InitialInstanceCount=1)
    user.create("growing", "grower", f"{registry.address}/server:1", accelerators=1)
    user.wait_serves("grower")
    server.wait_cached("growing")
    registry.reset()
    user.scale("grower", 3)
    user.wait_serves("grower", 3)
    assert len(server.instances("growing")) == 2
    (elsewhere,) = (x for x in user.launches("growing", "grower")[1:] if x["new_instance"])
    assert stage_of(elsewhere, "image")["bytes_by_source"].get("registry", 0) == 0
    assert registry.counts.bytes_served == 0
    user.scale("grower", 0)
    wait_until("no instance is left", lambda: server.instances("growing") == [])
    variant = server.sagemaker.describe_endpoint(EndpointName="growing")["ProductionVariants"][0]
    assert variant["CurrentInstanceCount"] == 0
    user.scale("grower", 1)
    user.wait_serves("grower", 1)
    assert user.invoke("growing", "grower") == b"hello"


def test_a_new_image_makes_a_new_generation_while_the_old_one_serves(
    server: Server, user: ComponentUser, registry: Registry
) -> None:
    push_image(registry.address, "added", "1", server_image_with("added"))
    user.make_endpoint("images", minimum=0)
    user.create("images", "old", f"{registry.address}/server:1", accelerators=1)
    user.wait_serves("old")
    server.wait_cached("images", 1)
    registry.reset()
    user.create("images", "new", f"{registry.address}/added:1", accelerators=2)
    user.wait_serves("new")
    # It takes an instance of its own, whose volume has three of the four layers.
    (launch,) = user.launches("images", "new")
    stage = stage_of(launch, "image")
    assert launch["new_instance"]
    assert (stage["path"], stage["layers_from_cache"], stage["layers_total"]) == ("partial", 3, 4)
    assert 200_000 < stage["bytes_by_source"]["registry"] < 300_000
    assert stage["bytes_by_source"]["registry"] <= registry.counts.bytes_served < 300_000
    generation = server.wait_cached("images", 2)
    images = json.loads((generation / "generation.json").read_text())["images"]
    assert len(images) == 2
    assert user.invoke("images", "old") == user.invoke("images", "new") == b"hello"
    user.delete("new")
    push_image(registry.address, "third", "1", server_image_with("third"))
    user.create("images", "third", f"{registry.address}/third:1")
    user.wait_serves("third")
    generation = server.wait_cached("images", 3)
    kept = json.loads((generation / "generation.json").read_text())["images"]
    references = sorted(image["reference"].rpartition("/")[2] for image in kept)
    assert references == ["server:1", "third:1"]
    for name in ("old", "third"):
        user.delete(name)
    wait_until(
        "older generations go with the instances that had them",
        lambda: [path.name for path in generation.parent.iterdir()] == [generation.name],
    )


def test_a_rolling_update_under_load_fails_no_request_and_a_bad_one_is_rolled_back(
    server: Server, user: ComponentUser, registry: Registry
) -> None:
    push_image(registry.address, "better", "1", server_image_with("better"))
    user.make_endpoint("rolling")
    user.create("rolling", "rolled", f"{registry.address}/server:1", copies=2)
    user.wait_serves("rolled", 2)
    with ComponentLoad(server, "rolling", "rolled").running() as load:
        user.sagemaker.update_inference_component(
            InferenceComponentName="rolled",
            Specification=user.specification(f"{registry.address}/better:1"),
            DeploymentConfig={
                "RollingUpdatePolicy": {
                    "MaximumBatchSize": {"Type": "COPY_COUNT", "Value": 1},
                    "WaitIntervalInSeconds": 0,
                }
            },
        )
        assert user.describe("rolled")["InferenceComponentStatus"] == "Updating"
        with pytest.raises(ClientError, match="while it is in state UPDATE_RC_IN_PROGRESS"):
            user.scale("rolled", 1)
        user.wait_serves("rolled", 2)
        load.wait_for_more()
        shown = user.describe("rolled")["Specification"]["Container"]["DeployedImage"]
        assert shown["SpecifiedImage"] == f"{registry.address}/better:1"
        marks = json.loads(user.invoke("rolling", "rolled", CustomAttributes="show=environment"))
        assert marks["MARK"] == "better"
        user.sagemaker.update_inference_component(
            InferenceComponentName="rolled",
            Specification=user.specification(f"{registry.address}/nowhere:1"),
        )
        user.wait_serves("rolled", 2)
        found = user.describe("rolled")
        assert "Please make sure all images" in found["FailureReason"]
        assert found["Specification"]["Container"]["DeployedImage"] == shown
        load.wait_for_more()
    assert load.failed == []


def test_copies_of_a_killed_instance_come_back_elsewhere(
    server: Server, user: ComponentUser, registry: Registry
) -> None:
    user.make_endpoint("killed", minimum=2, maximum=3, InitialInstanceCount=2)
    user.create("killed", "moved", f"{registry.address}/server:1", copies=2)
    user.wait_serves("moved", 2)
    placed = {launch["instance_id"] for launch in user.launches("killed", "moved")}
    victim = server.instances("killed")[0]
    assert placed == set(server.instances("killed"))
    with ComponentLoad(server, "killed", "moved").running() as load:
        for role in ("agent", "containerd", "snapshotter"):
            server.kill(server.daemon_pid(victim, role))
        for shim, pids in server.shims(victim).items():
            for pid in (*pids, shim):
                server.kill(pid)
        load.wait_for_more(40)
        user.wait_serves("moved", 2, 120)
        load.wait_for_more()
    # Only who waited for an answer from there, so no client more than once.
    assert all(len(of_one) <= 1 for of_one in load.failures), load.failed


def test_a_crashing_component_says_so_and_harms_no_neighbour(
    server: Server, user: ComponentUser, registry: Registry
) -> None:
    image = f"{registry.address}/server:1"
    user.make_endpoint("crashing")
    user.create("crashing", "good", image)
    user.wait_serves("good")
    user.create(
        "crashing", "bad", image,
        environment={"SERVER_BEHAVIOUR": "exit-at-start"},
        StartupParameters={"ContainerStartupHealthCheckTimeoutInSeconds": 60},
    )  # fmt: skip
    reason = wait_until("its restarts are told of", lambda: user.describe("bad").get(REASON))
    assert "is started again" in reason
    assert "exited with status 3" in reason
    assert user.describe("bad")["InferenceComponentStatus"] == "Creating"
    assert user.invoke("crashing", "good") == b"hello"
    reason = user.wait_failed("bad", 100)
    assert "did not pass the ping health check" in reason
    restarts = server.endpoint("crashing")["instances"][0]["copies"]
    assert [copy["restarts"] for copy in restarts if copy["component"] == "good"] == [0]
    user.delete("bad")
    assert user.invoke("crashing", "good") == b"hello"
    user.create("crashing", "bad", image)  # the name is free again
    user.wait_serves("bad")
    server.delete_endpoint("crashing")
    assert server.left_behind() == {}


def test_an_endpoint_is_deleted_with_components_in_every_state(
    server: Server, user: ComponentUser, registry: Registry
) -> None:
    image = f"{registry.address}/server:1"
    user.make_endpoint("ending", maximum=1)
    user.create("ending", "waits", image, environment={"SERVER_START_DELAY_S": "600"})
    user.create("ending", "fails", f"{registry.address}/nowhere:1")
    user.create("ending", "serves", image)
    user.wait_serves("serves")
    user.wait_failed("fails")
    user.sagemaker.update_inference_component(
        InferenceComponentName="serves", Specification=user.specification(image, accelerators=2)
    )
    states = {c: user.describe(c)["InferenceComponentStatus"] for c in ("waits", "fails", "serves")}
    assert states == {"waits": "Creating", "fails": "Failed", "serves": "Updating"}
    server.delete_endpoint("ending")
    assert not any(user.exists(name) for name in states)
    assert server.left_behind() == {}
    assert not list((server.folder / "state/caches").glob("*/*"))
