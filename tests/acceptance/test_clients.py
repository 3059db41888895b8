"""The AWS CLI and the SageMaker Python SDK, unmodified, with what `zeropull serve` printed.

They live in an environment of their own (build/clients): each pins versions of what the project's
own environment has. It is made at the first use; where it cannot be had the tests say so.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.serving import ROLE, Server, running_server
from tests.fixtures.clients import ClientEnvironment, client_environment
from tests.fixtures.registry import Registry
from tests.integration.serve.served import write_model

pytestmark = pytest.mark.timeout(580)  # the environment is made in the first one
COMMAND_S = 150


@pytest.fixture(scope="module")
def clients() -> ClientEnvironment:
    return client_environment()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("zp")) as server:
        write_model(server.folder)
        yield server


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    yield shared
    shared.clear()


def run(clients: ClientEnvironment, server: Server, *command: str) -> str:
    """With the variables that `serve` printed and no other of the AWS configuration."""
    environment = clients.environment(server.variables, home=server.folder)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=COMMAND_S, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def test_the_aws_cli_creates_describes_invokes_and_deletes(
    clients: ClientEnvironment, server: Server, registry: Registry, tmp_path: Path
) -> None:
    def aws(service: str, *arguments: str) -> Any:
        said = run(clients, server, clients.program("aws"), service, *arguments, "--output", "json")
        return json.loads(said) if said.strip() else None

    container = {
        "Image": f"{registry.address}/server:1",
        "ModelDataUrl": "s3://models/model.tar.gz",
    }
    variant = {
        "VariantName": "main",
        "ModelName": "by-cli",
        "InstanceType": "ml.m5.large",
        "InitialInstanceCount": 1,
    }
    made = aws(
        "sagemaker", "create-model", "--model-name", "by-cli", "--execution-role-arn", ROLE,
        "--primary-container", json.dumps(container),
    )  # fmt: skip
    assert made["ModelArn"].endswith(":model/by-cli")
    aws(
        "sagemaker", "create-endpoint-config", "--endpoint-config-name", "by-cli",
        "--production-variants", json.dumps([variant]), "--tags", "Key=team,Value=cli",
    )  # fmt: skip
    aws(
        "sagemaker", "create-endpoint", "--endpoint-name", "by-cli",
        "--endpoint-config-name", "by-cli",
    )  # fmt: skip
    server.wait_served("by-cli")
    aws("sagemaker", "wait", "endpoint-in-service", "--endpoint-name", "by-cli")
    described = aws("sagemaker", "describe-endpoint", "--endpoint-name", "by-cli")
    assert described["EndpointStatus"] == "InService"
    listed = aws("sagemaker", "list-endpoints", "--name-contains", "by-cli")
    assert [one["EndpointName"] for one in listed["Endpoints"]] == ["by-cli"]
    answer = tmp_path / "answer"
    body = tmp_path / "body"
    body.write_bytes(b"hello \xff\x00")
    headers = aws(
        "sagemaker-runtime", "invoke-endpoint", "--endpoint-name", "by-cli",
        "--body", f"fileb://{body}", str(answer),
    )  # fmt: skip
    assert answer.read_bytes() == body.read_bytes()
    assert headers["InvokedProductionVariant"] == "main"
    metrics = aws("cloudwatch", "list-metrics", "--namespace", "AWS/SageMaker")
    assert "Metrics" in metrics
    targets = aws(
        "application-autoscaling", "describe-scalable-targets", "--service-namespace", "sagemaker"
    )
    assert targets == {"ScalableTargets": []}
    aws("sagemaker", "delete-endpoint", "--endpoint-name", "by-cli")
    aws("sagemaker", "wait", "endpoint-deleted", "--endpoint-name", "by-cli")
    aws("sagemaker", "delete-endpoint-config", "--endpoint-config-name", "by-cli")
    aws("sagemaker", "delete-model", "--model-name", "by-cli")
    assert aws("sagemaker", "list-models") == {"Models": []}


def test_the_python_sdk_deploys_predicts_updates_and_deletes(
    clients: ClientEnvironment, server: Server, registry: Registry
) -> None:
    script = Path(__file__).with_name("sdkuser.py")
    image, model = f"{registry.address}/server:1", "s3://models/model.tar.gz"
    said = run(clients, server, clients.program("python"), str(script), "by-sdk", image, model)
    seen = json.loads(said.splitlines()[-1])
    assert seen["version"].startswith("2.")
    assert (seen["answer"], seen["streamed"], seen["again"]) == ("hello", "hello", "hello")
    assert seen["instances"] == 2
    assert {"Key": "team", "Value": "sdk"} in seen["tags"]
    server.wait_deleted("by-sdk")
    assert server.sagemaker.list_models()["Models"] == []
    assert server.sagemaker.list_endpoint_configs()["EndpointConfigs"] == []
