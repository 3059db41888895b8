"""Updates and crashes while requests come in, and the rungs of the image ladder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.registry import Registry
from tests.fixtures.server_image import python_server_image
from tests.integration.serve.served import ROLE, Served, image_stage, wait_until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(170),
]


@contextlib.contextmanager
def load(served: Served, name: str) -> Iterator[list[str]]:
    """Requests one after the other from two threads; yields the list of those that failed."""
    failed: list[str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                served.invoke(name)
            except Exception as error:
                failed.append(repr(error))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield failed
    finally:
        over.set()
        for thread in threads:
            thread.join(70)


def kill(served: Served, daemon: str) -> None:
    """SIGKILL the named process of this serve."""
    mark = f"zeropull.daemons.{daemon}"
    assert served.process is not None
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == served.process.pid and mark in (entry / "cmdline").read_text():
                os.kill(int(entry.name), signal.SIGKILL)


def test_the_first_deployment_of_two_instances_reads_every_layer_once(
    served: Served, registry: Registry
) -> None:
    registry.reset()
    served.create("pair", f"{registry.address}/server:1", InitialInstanceCount=2)
    served.wait_in_service("pair")
    fetched = [
        image_stage(launch)["bytes_by_source"].get("registry", 0)
        for launch in served.launches("pair")
    ]
    assert sum(fetched) <= python_server_image().compressed_bytes * 1.01
    assert min(fetched) < 10_000, "the second instance may read the manifest, and no layer"


def test_an_update_replaces_all_instances_without_a_failed_request(
    served: Served, registry: Registry
) -> None:
    served.create("moved", f"{registry.address}/server:1")
    served.wait_in_service("moved")
    before = {launch["instance_id"] for launch in served.launches("moved")}
    served.sagemaker.create_model(
        ModelName="other",
        PrimaryContainer={"Image": f"{registry.address}/server:1", "Environment": {"A": "b"}},
        ExecutionRoleArn=ROLE,
    )
    served.sagemaker.create_endpoint_config(
        EndpointConfigName="other",
        ProductionVariants=[
            {
                "VariantName": "main",
                "ModelName": "other",
                "InstanceType": "ml.g5.xlarge",
                "InitialInstanceCount": 1,
            }
        ],
    )

    def instances() -> set[str]:
        endpoints = json.loads(served.cli("status", "--json"))["endpoints"]
        return {i["instance_id"] for i in endpoints[0]["instances"]}

    with load(served, "moved") as failed:
        served.sagemaker.update_endpoint(EndpointName="moved", EndpointConfigName="other")
        served.wait_in_service("moved")
        wait_until("the old instance is gone", lambda: not (instances() & before))
    assert failed == []


def test_a_control_plane_killed_during_a_launch_finishes_it_and_nobody_notices(
    served: Served, registry: Registry
) -> None:
    served.create("tough", f"{registry.address}/server:1")
    served.wait_in_service("tough")
    with load(served, "tough") as failed:
        served.scale("tough", 2)
        kill(served, "control_plane")

        def two_serve() -> bool:
            try:
                description = served.sagemaker.describe_endpoint(EndpointName="tough")
            except Exception:
                return False
            variant = description["ProductionVariants"][0]
            return description["EndpointStatus"] == "InService" and (
                variant["CurrentInstanceCount"] == 2
            )

        wait_until("two instances serve", two_serve)
    assert failed == []


def test_a_gateway_that_was_killed_comes_back_on_the_same_port(
    served: Served, registry: Registry
) -> None:
    served.create("door", f"{registry.address}/server:1", "ml.m5.large")
    served.wait_in_service("door")
    kill(served, "gateway")

    def answers() -> bool:
        try:
            return b"hello" in served.invoke("door")
        except Exception:
            return False

    wait_until("it answers on the same address", answers)


def test_a_tag_on_the_endpoint_chooses_the_rung_of_the_ladder(
    served: Served, registry: Registry
) -> None:
    served.create("rung", f"{registry.address}/server:1")
    served.wait_in_service("rung")
    arn = served.sagemaker.describe_endpoint(EndpointName="rung")["EndpointArn"]
    for count, path in enumerate(("fallback", "containerd"), start=2):
        served.sagemaker.add_tags(
            ResourceArn=arn, Tags=[{"Key": "zeropull:image-path", "Value": path}]
        )
        served.scale("rung", count)
        served.wait_in_service("rung")
        stage = image_stage(max(served.launches("rung"), key=lambda one: one["began_s"]))
        assert stage["path"] == path
        assert stage["bytes_by_source"]["registry"] > 1_000_000


def test_a_damaged_generation_is_noticed_and_built_again(
    served: Served, registry: Registry
) -> None:
    served.create("hurt", f"{registry.address}/server:1")
    served.wait_in_service("hurt")

    def generation() -> int:
        endpoints = json.loads(served.cli("status", "--json"))["endpoints"]
        return int(endpoints[0]["image_cache"]["generation"] or 0)

    wait_until("the generation is published", lambda: generation() == 1)
    metadata = max(
        served.folder.glob("state/caches/*/generations/1/layers/*/meta.erofs"),
        key=lambda path: path.stat().st_size,
    )
    content = bytearray(metadata.read_bytes())
    content[len(content) // 2] ^= 0xFF
    metadata.unlink()  # a hard link of the first node's own file, which must stay good
    metadata.write_bytes(content)
    served.scale("hurt", 2)
    served.wait_in_service("hurt")
    stage = image_stage(max(served.launches("hurt"), key=lambda one: one["began_s"]))
    assert stage["bytes_by_source"]["registry"] > 0
    wait_until("another generation is published", lambda: generation() > 1)
