"""Accelerators of components by CDI: whole devices, each of one copy, whatever is started again.

The specification's devices exist on any machine. A container that is given one finds its node.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.component_user import TYPES, ComponentUser
from tests.acceptance.serving import Server, running_server, wait_until
from tests.fixtures.registry import Registry

DEVICES = {"0": "/dev/zero", "1": "/dev/full"}


def write_specification(server: Server) -> None:
    devices = [
        {
            "name": name,
            "containerEdits": {
                "deviceNodes": [{"path": f"/dev/tests-gpu{name}", "hostPath": path}],
                "env": [f"TESTS_GPU_{name}=given"],
            },
        }
        for name, path in DEVICES.items()
    ]
    (server.folder / "cdi").mkdir()
    (server.folder / "cdi/tests.json").write_text(
        json.dumps({"cdiVersion": "0.6.0", "kind": "nvidia.com/gpu", "devices": devices})
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("zp")
    settings: dict[str, Any] = {
        **TYPES,
        "fleet": {"cdi_dirs": [str(folder / "cdi")]},
        "endpoints": {"retry_s": 0.5, "idle_release_s": 600.0},
    }
    with running_server(folder, write_specification, **settings) as server:
        yield server


@pytest.fixture
def user(server: Server) -> Iterator[ComponentUser]:
    user = ComponentUser(server)
    yield user
    user.clean_up()


def devices_of(user: ComponentUser, endpoint: str, name: str) -> set[str]:
    """Numbers of the devices that its container finds: as nodes, and as variables."""
    nodes = json.loads(user.invoke(endpoint, name, CustomAttributes="show=files:/dev"))
    variables = json.loads(user.invoke(endpoint, name, CustomAttributes="show=environment"))
    found = {node.removeprefix("tests-gpu") for node in nodes if node.startswith("tests-gpu")}
    assert found == {v.removeprefix("TESTS_GPU_") for v in variables if v.startswith("TESTS_GPU_")}
    return found


def test_each_device_is_one_copys_own_through_restarts_and_free_after_it(
    server: Server, user: ComponentUser, registry: Registry
) -> None:
    image = f"{registry.address}/server:1"
    user.make_endpoint("devices", maximum=1)
    for name, count in (("one", 1), ("two", 1), ("none", 0)):
        user.create("devices", name, image, accelerators=count)
        user.wait_serves(name)
    given = {name: devices_of(user, "devices", name) for name in ("one", "two", "none")}
    assert {len(given["one"]), len(given["two"])} == {1}
    assert given["one"] | given["two"] == set(DEVICES)
    assert given["none"] == set()
    user.create("devices", "waiter", image, accelerators=1)
    wait_until("it waits", lambda: "0 accelerators are free" in str(user.describe("waiter")))

    (instance,) = server.instances("devices")
    agent = server.daemon_pid(instance, "agent")
    server.kill(agent)
    server.kill(server.child_pid("control_plane"))
    with contextlib.suppress(Exception):  # the container ends in the midst of its answer
        user.invoke("devices", "two", CustomAttributes="exit=1")

    def are_back() -> bool:
        try:
            now = {name: devices_of(user, "devices", name) for name in given}
        except Exception:
            return False
        assert now == given
        return server.daemon_pid(instance, "agent") not in (0, agent)

    wait_until("all serve again, with the devices that they had", are_back)
    assert user.describe("waiter")["InferenceComponentStatus"] == "Creating"
    user.delete("one")
    user.wait_serves("waiter")
    assert devices_of(user, "devices", "waiter") == given["one"]
    assert devices_of(user, "devices", "two") == given["two"]
    # The next endpoint waits for the machine's devices, and gets them all.
    user.make_endpoint("afterwards", maximum=1, wait=False)
    wait_until(
        "it waits for devices",
        lambda: "are given out" in server.cli("explain", "afterwards"),
    )
    server.delete_endpoint("devices")
    server.wait_in_service("afterwards")
    user.create("afterwards", "both", image, accelerators=2)
    user.wait_serves("both")
    assert devices_of(user, "afterwards", "both") == set(DEVICES)
