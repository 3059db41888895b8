"""`zeropull serve` as a user has it: boto3 only, a real registry, real containers."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tests.fixtures.images import push_image
from tests.fixtures.registry import Registry, running_registry
from tests.fixtures.serverimage import python_server_image

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(170),
]

ROLE = "arn:aws:iam::000000000000:role/test"
DEADLINE_S = 60.0


def wait_until(what: str, check: Callable[[], Any], limit_s: float = DEADLINE_S) -> Any:
    """The first true value of `check`, asked again and again."""
    pause = threading.Event()
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        pause.wait(0.2)
    raise AssertionError(f"{what}: not within {limit_s} s")


class Served:
    """One `zeropull serve` and its user."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "zeropull.toml"
        (folder / "bucket").mkdir()
        self.config.write_text(f"""
[serve]
state_dir = "{folder}/state"
port = 0
[fleet]
simulate_accelerators = true
[endpoints]
retry_s = 0.5
[buckets.models]
directory = "{folder}/bucket"
""")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        (self.folder / "out").unlink(missing_ok=True)
        with (self.folder / "out").open("wb") as out, (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "zeropull.cli.main", "serve", "--config", str(self.config)],
                stdout=out,
                stderr=log,
                start_new_session=True,
            )
        lines = wait_until("serve answers", self._lines, 30)
        variables = dict(
            line.removeprefix("export ").split("=", 1) for line in lines if line[:7] == "export "
        )
        assert "AWS_ENDPOINT_URL" not in variables
        options: dict[str, Any] = {
            "region_name": variables["AWS_DEFAULT_REGION"],
            "aws_access_key_id": variables["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": variables["AWS_SECRET_ACCESS_KEY"],
            "endpoint_url": variables["AWS_ENDPOINT_URL_SAGEMAKER"],
            "config": Config(retries={"total_max_attempts": 1}, read_timeout=70),
        }
        self.sagemaker = boto3.client("sagemaker", **options)
        self.runtime = boto3.client("sagemaker-runtime", **options)

    def _lines(self) -> list[str] | None:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        text = (self.folder / "out").read_text()
        return text.splitlines() if "AWS_ENDPOINT_URL_CLOUDWATCH" in text else None

    def end(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(90)

    def cli(self, *arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "zeropull.cli.main", *arguments, "--config", str(self.config)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def log(self) -> str:
        logs = [self.folder / "log", *self.folder.glob("state/instances/*/logs/*.log")]
        return "\n".join(f"== {p}\n{p.read_text(errors='replace')[-6000:]}" for p in logs)

    def status(self, name: str) -> str:
        return str(self.sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"])

    def create(self, name: str, image: str, kind: str = "ml.g5.xlarge", **variant: Any) -> None:
        environment = variant.pop("Environment", {})
        container = {"Image": image, "Environment": environment}
        if (self.folder / "bucket/model.tar.gz").exists():
            container["ModelDataUrl"] = "s3://models/model.tar.gz"
        self.sagemaker.create_model(
            ModelName=name, PrimaryContainer=container, ExecutionRoleArn=ROLE
        )
        self.sagemaker.create_endpoint_config(
            EndpointConfigName=name,
            ProductionVariants=[
                {
                    "VariantName": "main",
                    "ModelName": name,
                    "InstanceType": kind,
                    "InitialInstanceCount": 1,
                    **variant,
                }
            ],
        )
        self.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)

    def wait_in_service(self, name: str) -> None:
        def settled() -> str | None:
            description = self.sagemaker.describe_endpoint(EndpointName=name)
            status = description["EndpointStatus"]
            assert status != "Failed", f"{description['FailureReason']}\n{self.log()}"
            return status if status == "InService" else None

        try:
            wait_until(f"{name} in service", settled)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None

    def invoke(self, name: str, body: bytes = b"hello") -> bytes:
        answer = self.runtime.invoke_endpoint(
            EndpointName=name, Body=body, ContentType="application/octet-stream"
        )
        return bytes(answer["Body"].read())

    def scale(self, name: str, count: int) -> None:
        self.sagemaker.update_endpoint_weights_and_capacities(
            EndpointName=name,
            DesiredWeightsAndCapacities=[{"VariantName": "main", "DesiredInstanceCount": count}],
        )

    def launches(self, name: str) -> list[dict[str, Any]]:
        return list(json.loads(self.cli("timeline", name, "--json"))["launches"])

    def delete(self, name: str) -> None:
        self.sagemaker.delete_endpoint(EndpointName=name)

        def gone() -> bool:
            listed = self.sagemaker.list_endpoints(NameContains=name)["Endpoints"]
            return not listed

        wait_until(f"{name} gone", gone)


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("zp")
    served = Served(folder)
    try:
        served.start()
        yield served
    finally:
        served.end(signal.SIGINT)
        with contextlib.suppress(subprocess.CalledProcessError):
            served.cli("stop")
    mounts = Path("/proc/self/mountinfo").read_text()
    assert str(folder) not in mounts


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with running_registry() as registry:
        push_image(registry.address, "server", "1", python_server_image())
        yield registry


def write_model(folder: Path) -> None:
    with tarfile.open(folder / "bucket/model.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("weights.bin")
        info.size = 1 << 20
        archive.addfile(info, io.BytesIO(os.urandom(1 << 20)))


def image_stage(launch: dict[str, Any]) -> dict[str, Any]:
    return next(s for s in launch["stages"] if s["stage"] == "image")


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
    wait_until("it answers again", lambda: _answers(served, "kept"))
    after = json.loads(served.cli("status", "--json"))["endpoints"][0]["instances"]
    assert [i["instance_id"] for i in after] == [i["instance_id"] for i in before]
    assert after[0]["copies"][0]["restarts"] == 0
    served.end(signal.SIGINT)
    assert not list((served.folder / "state/instances").glob("i-*"))
    served.start()
    served.wait_in_service("kept")
    wait_until("it comes back from the store", lambda: _answers(served, "kept"))


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


def _answers(served: Served, name: str) -> bool:
    try:
        return b"hello" in served.invoke(name)
    except Exception:
        return False
