"""`zeropull serve` as a user has it: boto3 only, a real registry, real containers."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from tests.fixtures.registry import Registry
from tests.integration.serve.served import Served, answers, image_stage, wait_until, write_model

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(170),
]


def test_an_endpoint_scales_out_from_its_cache_with_the_registry_switched_off(
    served: Served, registry: Registry
) -> None:
    write_model(served.folder)
    served.create("first", f"{registry.address}/server:1")
    served.wait_in_service("first")
    assert b"hello" in served.invoke("first")

    def published() -> Any:
        endpoints = json.loads(served.cli("status", "--json"))["endpoints"]
        return endpoints[0]["image_cache"]["generation"]

    wait_until("the generation is published", published)
    registry.switch_off()
    try:
        served.scale("first", 2)
        served.wait_in_service("first")
    finally:
        registry.switch_on()
    newest = max(served.launches("first"), key=lambda one: one["began_s"])
    stage = image_stage(newest)
    assert stage["bytes_by_source"].get("registry", 0) == 0
    assert stage["layers_from_cache"] == stage["layers_total"] == 3
    assert {s["stage"] for s in newest["stages"]} >= {"detect", "provision", "image", "health"}
    page = served.folder / "timeline.html"
    served.cli("timeline", "first", "--html", str(page))
    assert "3 of 3 layers from the cache" in page.read_text()
    served.delete("first")
    assert not list((served.folder / "state/caches").glob("*/*"))
    assert not list((served.folder / "state/instances").glob("i-*"))


def test_what_runs_is_adopted_after_sigterm_without_restarting_a_container(
    served: Served, registry: Registry
) -> None:
    served.create("kept", f"{registry.address}/server:1", "ml.m5.large")
    served.wait_in_service("kept")
    before = json.loads(served.cli("status", "--json"))["endpoints"][0]["instances"]
    served.end(signal.SIGTERM)
    served.start()
    wait_until("it answers again", lambda: answers(served, "kept"))
    after = json.loads(served.cli("status", "--json"))["endpoints"][0]["instances"]
    assert [i["instance_id"] for i in after] == [i["instance_id"] for i in before]
    assert after[0]["copies"][0]["restarts"] == 0
    served.end(signal.SIGINT)
    assert not list((served.folder / "state/instances").glob("i-*"))
    served.start()
    served.wait_in_service("kept")
    wait_until("it comes back from the store", lambda: answers(served, "kept"))


def test_an_unknown_image_fails_the_endpoint_with_a_reason_and_a_later_attempt_succeeds(
    served: Served, registry: Registry
) -> None:
    served.create("wrong", f"{registry.address}/server:none", "ml.m5.large")
    wait_until("it has failed", lambda: served.status("wrong") == "Failed")
    reason = served.sagemaker.describe_endpoint(EndpointName="wrong")["FailureReason"]
    assert "Please make sure all images" in reason
    served.delete("wrong")
    served.create("right", f"{registry.address}/server:1", "ml.m5.large")
    served.wait_in_service("right")
