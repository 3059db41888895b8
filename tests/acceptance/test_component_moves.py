"""Copies move and versions go back while requests come in: consolidation, and rollback by alarm."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.component_user import TYPES, ComponentLoad, ComponentUser
from tests.acceptance.images import server_image_with
from tests.acceptance.serving import Server, running_server, wait_until
from tests.fixtures.images import push_image
from tests.fixtures.registry import Registry
from zeropull.statestore.bodies import packed, unpacked
from zeropull.statestore.digests import digest_of

COOLDOWN_MIN = 5  # the least that the API takes
LEFT_S = 12.0  # of the cooldown, when the server is back
MOMENTS = ("created_s", "modified_s", "running_s", "launched_s", "healthy_s", "routed_s")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings: dict[str, Any] = {**TYPES, "endpoints": {"retry_s": 0.5, "idle_release_s": 600.0}}
    with running_server(tmp_path_factory.mktemp("zp"), **settings) as server:
        yield server


@pytest.fixture
def user(server: Server) -> Iterator[ComponentUser]:
    user = ComponentUser(server)
    yield user
    user.clean_up()


def age_everything(server: Server, by_s: float) -> None:
    """As if the server had been away for so long: containers serve on meanwhile."""
    server.end(signal.SIGTERM)
    with contextlib.closing(sqlite3.connect(server.folder / "state/zeropull.db")) as store:
        for kind, key, body in store.execute("SELECT kind, key, body FROM documents").fetchall():
            document: dict[str, Any] = json.loads(unpacked(body))
            for name in MOMENTS:
                if isinstance(document.get(name), float | int):
                    document[name] -= by_s
            aged = packed(json.dumps(document).encode())
            store.execute(
                "UPDATE documents SET body = ?, digest = ? WHERE kind = ? AND key = ?",
                (aged, digest_of(kind, key.encode(), aged), kind, key),
            )
        store.commit()
    server.start()


def test_consolidation_moves_copies_without_a_failed_request(
    server: Server, user: ComponentUser, registry: Registry
) -> None:
    user.make_endpoint(
        "spread",
        InitialInstanceCount=2,
        ManagedInstanceScaling={
            "Status": "ENABLED",
            "MinInstanceCount": 1,
            "MaxInstanceCount": 2,
            "ScaleInPolicy": {"Strategy": "CONSOLIDATION", "CooldownInMinutes": COOLDOWN_MIN},
        },
    )
    # With one image for both, the second would go where the image is.
    for name in ("left", "right"):
        push_image(registry.address, name, "1", server_image_with(name))
        user.create("spread", name, f"{registry.address}/{name}:1", accelerators=1)
        user.wait_serves(name)

    def launches() -> list[list[dict[str, Any]]]:
        return sorted((user.launches("spread", name) for name in ("left", "right")), key=len)

    last_s = time.time()
    assert len({one[0]["instance_id"] for one in launches()}) == 2
    age_everything(server, COOLDOWN_MIN * 60 - LEFT_S)
    with contextlib.ExitStack() as stack:
        loads = [
            stack.enter_context(ComponentLoad(server, "spread", name).running())
            for name in ("left", "right")
        ]
        wait_until("one instance has gone", lambda: len(server.instances("spread")) == 1)
        stayed, moved = launches()
        assert (len(stayed), len(moved)) == (1, 2)
        assert [stayed[0]["instance_id"]] == server.instances("spread")
        assert moved[1]["instance_id"] == stayed[0]["instance_id"]
        # The cooldown was honoured, and the new one served before the old one had gone.
        assert moved[1]["began_s"] > last_s + LEFT_S - 2
        assert moved[1]["ready_s"] < moved[0]["ended_s"]
        for load in loads:
            load.wait_for_more()
    assert [load.failed for load in loads] == [[], []]


def test_an_alarm_during_a_rolling_update_brings_the_old_version_back(
    server: Server, user: ComponentUser, registry: Registry
) -> None:
    push_image(registry.address, "worse", "1", server_image_with("worse"))
    user.make_endpoint("watched", maximum=1)
    user.create("watched", "rolled-back", f"{registry.address}/server:1", copies=2)
    user.wait_serves("rolled-back", 2)
    before = user.describe("rolled-back")["Specification"]
    cloudwatch = server.client("cloudwatch")
    user.put_alarm(
        "complaints",
        Namespace="own",
        MetricName="complaints",
        Statistic="Sum",
        Period=10,
        EvaluationPeriods=1,
        Threshold=0,
        ComparisonOperator="GreaterThanThreshold",
        TreatMissingData="notBreaching",
    )
    with ComponentLoad(server, "watched", "rolled-back").running() as load:
        user.sagemaker.update_inference_component(
            InferenceComponentName="rolled-back",
            Specification=user.specification(f"{registry.address}/worse:1"),
            DeploymentConfig={
                "RollingUpdatePolicy": {
                    "MaximumBatchSize": {"Type": "COPY_COUNT", "Value": 1},
                    "WaitIntervalInSeconds": 200,
                },
                "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "complaints"}]},
            },
        )

        def versions() -> set[str]:
            shown = user.invoke("watched", "rolled-back", CustomAttributes="show=environment")
            return {str(json.loads(shown).get("MARK"))}

        wait_until("the new version serves too", lambda: versions() == {"worse"})
        assert user.describe("rolled-back")["InferenceComponentStatus"] == "Updating"
        assert "FailureReason" not in user.describe("rolled-back")
        cloudwatch.put_metric_data(
            Namespace="own",
            MetricData=[{"MetricName": "complaints", "Value": 1.0, "StorageResolution": 1}],
        )
        user.wait_serves("rolled-back", 2)
        load.wait_for_more()
        found = user.describe("rolled-back")
        assert "alarm complaints is in ALARM" in found["FailureReason"]
        assert found["Specification"] == before
        assert all(versions() == {"None"} for _ in range(10))
    assert load.failed == []
