"""A `zeropull serve` of the tests' own, and its user: boto3 only."""

from __future__ import annotations

import configparser
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
from botocore.config import Config

ROLE = "arn:aws:iam::000000000000:role/test"
DEADLINE_S = 60.0
START_S = 90.0  # above the supervisor's own limit, which says what is wrong


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

    def __init__(self, folder: Path, *, fleet: str = "", endpoints: str = "") -> None:
        self.folder = folder
        self.config = folder / "zeropull.toml"
        (folder / "bucket").mkdir()
        self.config.write_text(f"""
[serve]
state_dir = "{folder}/state"
port = 0
[fleet]
simulate_accelerators = true
{fleet}
[endpoints]
retry_s = 0.5
{endpoints}
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
        self.connect()

    def connect(self) -> None:
        """Become its user as soon as it has said how."""
        lines = wait_until("serve answers", self._lines, START_S)
        variables = dict(
            line.removeprefix("export ").split("=", 1) for line in lines if line[:7] == "export "
        )
        assert "AWS_ENDPOINT_URL" not in variables
        assert "AWS_SECRET_ACCESS_KEY" not in variables, "what is no terminal may be a log"
        credentials = configparser.ConfigParser(interpolation=None)
        credentials.read(variables["AWS_SHARED_CREDENTIALS_FILE"])
        key = credentials["default"]
        self.variables = variables
        options: dict[str, Any] = {
            "region_name": variables["AWS_DEFAULT_REGION"],
            "aws_access_key_id": key["aws_access_key_id"],
            "aws_secret_access_key": key["aws_secret_access_key"],
            "endpoint_url": variables["AWS_ENDPOINT_URL_SAGEMAKER"],
            "config": Config(retries={"total_max_attempts": 1}, read_timeout=70),
        }
        self._options = options
        self.sagemaker = self.client("sagemaker")
        self.runtime = self.client("sagemaker-runtime")

    def client(self, service: str, **more: Any) -> Any:
        """Unmodified boto3, with what `serve` printed."""
        return boto3.client(service, **(self._options | more))

    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _lines(self) -> list[str] | None:
        assert self.is_alive(), self.log()
        out = self.folder / "out"
        text = out.read_text() if out.exists() else ""
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


def answers(served: Served, name: str) -> bool:
    try:
        return b"hello" in served.invoke(name)
    except Exception:
        return False


def write_model(folder: Path) -> None:
    with tarfile.open(folder / "bucket/model.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("weights.bin")
        info.size = 1 << 20
        archive.addfile(info, io.BytesIO(os.urandom(1 << 20)))


def image_stage(launch: dict[str, Any]) -> dict[str, Any]:
    return next(s for s in launch["stages"] if s["stage"] == "image")


@contextlib.contextmanager
def running_serve(folder: Path, **settings: str) -> Iterator[Served]:
    """Entered once it answers; left when nothing of it is left on the machine. `settings` are more
    lines of the tables `fleet` and `endpoints`."""
    served = Served(folder, **settings)
    try:
        served.start()
        yield served
    finally:
        served.end(signal.SIGINT)
        with contextlib.suppress(subprocess.CalledProcessError):
            served.cli("stop")
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
