"""A `zeropull serve` of a demo's or benchmark's own, and its user: unmodified boto3."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

ENDPOINT = "demo"
INSTANCE_TYPE = "ml.g5.xlarge"
WAIT_S = 600
TAG_VALUE = {
    "containerd": "containerd",
    "fallback": "fallback",
    "network": "auto",
    "cached": "auto",
}
"""The value of the tag `zeropull:image-path` that makes a launch take each path."""


class Server:
    """A `zeropull serve` of the demo's own, in a state directory of its own."""

    def __init__(self, state_dir: Path, config: Path) -> None:
        self.state_dir = state_dir
        self.config = config
        self.command = [sys.executable, "-m", "zeropull.cli.main"]
        self.log = state_dir.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> dict[str, str]:
        """Start it and return the variables that a user of boto3 would paste."""
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*self.command, "serve", "--config", str(self.config)],
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        variables: dict[str, str] = {}
        for raw in self.process.stdout:
            line = raw.decode().strip()
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").partition("=")
                variables[name] = value.strip("\"'")
            if "AWS_ENDPOINT_URL_CLOUDWATCH" in variables:
                threading.Thread(target=self.process.stdout.read, daemon=True).start()
                return variables
        raise SystemExit(f"zeropull serve ended early; it said:\n{self.log.read_text()[-3000:]}")

    def cli(self, *arguments: str) -> str:
        return subprocess.run(
            [*self.command, *arguments, "--config", str(self.config)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def timeline(self) -> list[dict[str, Any]]:
        return list(json.loads(self.cli("timeline", ENDPOINT, "--json"))["launches"])

    def let_go(self) -> None:
        """SIGTERM, as for an upgrade: what runs goes on, and the next start adopts it."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(90)

    def stop(self) -> None:
        """As Ctrl-C does."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(90)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


class Client:
    """The user: boto3 and nothing else."""

    def __init__(self, variables: dict[str, str]) -> None:
        os.environ.update(variables)
        # One attempt only, so that an error is seen as an error.
        once = Config(retries={"total_max_attempts": 1}, read_timeout=70)
        self.sagemaker = boto3.client("sagemaker", config=once)
        self.runtime = boto3.client("sagemaker-runtime", config=once)

    def deploy(self, image: str, model_url: str) -> None:
        self.sagemaker.create_model(
            ModelName=ENDPOINT,
            PrimaryContainer={"Image": image, "ModelDataUrl": model_url},
            ExecutionRoleArn="arn:aws:iam::000000000000:role/demo",
        )
        self.sagemaker.create_endpoint_config(
            EndpointConfigName=ENDPOINT,
            ProductionVariants=[
                {
                    "VariantName": "main",
                    "ModelName": ENDPOINT,
                    "InitialInstanceCount": 1,
                    "InstanceType": INSTANCE_TYPE,
                    "RoutingConfig": {"RoutingStrategy": "LEAST_OUTSTANDING_REQUESTS"},
                }
            ],
        )
        self.sagemaker.create_endpoint(EndpointName=ENDPOINT, EndpointConfigName=ENDPOINT)
        self.wait_in_service()

    def wait_in_service(self) -> None:
        self.sagemaker.get_waiter("endpoint_in_service").wait(
            EndpointName=ENDPOINT, WaiterConfig={"Delay": 1, "MaxAttempts": WAIT_S}
        )

    def invoke(self, text: str = "a new instance starts with its image already there") -> Any:
        answer = self.runtime.invoke_endpoint(
            EndpointName=ENDPOINT,
            ContentType="application/json",
            Body=json.dumps({"inputs": [text]}).encode(),
        )
        return json.loads(answer["Body"].read())

    @contextlib.contextmanager
    def invoking(self) -> Iterator[None]:
        """A light, steady load: about ten requests a second, so that the first answer of a new
        instance is seen when it can be given."""
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(0.2):
                with contextlib.suppress(ClientError):
                    self.invoke()

        workers = [threading.Thread(target=work) for _ in range(2)]
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            stop.set()
            for worker in workers:
                worker.join(80)

    def choose_path(self, path: str) -> None:
        arn = self.sagemaker.describe_endpoint(EndpointName=ENDPOINT)["EndpointArn"]
        tags = [{"Key": "zeropull:image-path", "Value": TAG_VALUE[path]}]
        self.sagemaker.add_tags(ResourceArn=arn, Tags=tags)

    def scale(self, count: int) -> None:
        self.sagemaker.update_endpoint_weights_and_capacities(
            EndpointName=ENDPOINT,
            DesiredWeightsAndCapacities=[{"VariantName": "main", "DesiredInstanceCount": count}],
        )

    def is_in_service(self) -> bool:
        found = self.sagemaker.describe_endpoint(EndpointName=ENDPOINT)
        return bool(found["EndpointStatus"] == "InService")

    def delete(self) -> None:
        self.sagemaker.delete_endpoint(EndpointName=ENDPOINT)
        self.sagemaker.get_waiter("endpoint_deleted").wait(
            EndpointName=ENDPOINT, WaiterConfig={"Delay": 1, "MaxAttempts": WAIT_S}
        )
        self.sagemaker.delete_endpoint_config(EndpointConfigName=ENDPOINT)
        self.sagemaker.delete_model(ModelName=ENDPOINT)
