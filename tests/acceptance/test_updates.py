"""UpdateEndpoint where the machine has no room for the old and the new fleet side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.images import server_image_with
from tests.acceptance.serving import CPU, Load, Server, running_server, wait_until
from tests.fixtures.images import push_image
from tests.fixtures.registry import Registry

ROOM = 2  # instances
PATIENCE_S = 5.0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[Server]:
    push_image(registry.address, "newer", "1", server_image_with("newer"))
    full = {"simulate_accelerators": True, "max_instances": ROOM}
    patience = {"retry_s": 0.5, "provision_timeout_s": PATIENCE_S}
    folder = tmp_path_factory.mktemp("zp")
    with running_server(folder, fleet=full, endpoints=patience) as server:
        yield server


@pytest.fixture
def server(shared: Server, registry: Registry) -> Iterator[Server]:
    """The endpoint `crowded` takes all the room; a config `newer` with another image is there."""
    shared.deploy("crowded", f"{registry.address}/server:1", CPU, InitialInstanceCount=ROOM)
    shared.make_config("newer", f"{registry.address}/newer:1", CPU, InitialInstanceCount=ROOM)
    shared.wait_served("crowded", ROOM)
    try:
        yield shared
    finally:
        shared.clear()


def update(server: Server, policy: dict[str, Any] | None) -> None:
    more = {} if policy is None else {"DeploymentConfig": policy}
    server.sagemaker.update_endpoint(EndpointName="crowded", EndpointConfigName="newer", **more)


def described(server: Server) -> dict[str, Any]:
    return dict(server.sagemaker.describe_endpoint(EndpointName="crowded"))


def test_blue_green_says_what_is_missing_and_goes_back_to_the_old_fleet(server: Server) -> None:
    """The default policy: no old instance goes before the whole new fleet is there."""
    before = server.instances("crowded")
    with Load(server, "crowded").running() as load:
        update(server, None)

        def told() -> str:
            pending = described(server).get("PendingDeploymentSummary", {})
            variants = pending.get("ProductionVariants", [{}])
            statuses = variants[0].get("VariantStatus", [{}])
            return str(statuses[0].get("StatusMessage", ""))

        assert f"{ROOM} of at most {ROOM} instances" in wait_until("it says so", told)
        wait_until(
            "the old fleet serves alone",
            lambda: "PendingDeploymentSummary" not in described(server),
        )
        server.wait_served("crowded", ROOM)
        load.wait_for_more()
    assert load.failed == []
    found = described(server)
    assert "No capacity came free" in found["FailureReason"], found
    assert "fleet.max_instances" in found["FailureReason"]
    assert found["EndpointConfigName"] == "crowded"
    wait_until("what was wanted is gone", lambda: server.instances("crowded") == before)
    assert server.show("crowded", "environment").get("MARK") is None


def test_a_rolling_update_lets_old_instances_go_first(server: Server) -> None:
    before = server.instances("crowded")
    batch = {"Type": "INSTANCE_COUNT", "Value": 1}
    rolling = {"MaximumBatchSize": batch, "WaitIntervalInSeconds": 0}
    with Load(server, "crowded").running() as load:
        update(server, {"RollingUpdatePolicy": rolling})
        wait_until(
            "every instance is new",
            lambda: (
                len(found := server.instances("crowded")) == ROOM and not set(found) & set(before)
            ),
        )
        server.wait_served("crowded", ROOM)
        load.wait_for_more()
    assert load.failed == []
    assert described(server)["EndpointConfigName"] == "newer"
    for _ in range(2 * ROOM):
        assert server.show("crowded", "environment")["MARK"] == "newer"
