"""Unmodified clients with what `zeropull serve` printed: the AWS CLI, SageMaker's Python SDK in its
two versions, aws-sdk-go-v2 and the JavaScript SDK. tests/fixtures/clients.py makes them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.serving import ROLE, Server, running_server
from tests.fixtures.clients import (
    CLI_AND_SDK_2,
    SDK_3,
    Client,
    go_client,
    javascript_client,
    python_client,
)
from tests.fixtures.registry import Registry
from tests.integration.serve.served import write_model

pytestmark = pytest.mark.timeout(580)  # the environment is made in the first one
COMMAND_S = 150
MODEL = "s3://models/model.tar.gz"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("zp")) as server:
        write_model(server.folder)
        yield server


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    yield shared
    shared.clear()


def run(client: Client, server: Server, *command: str) -> str:
    """With the variables that `serve` printed and no other of the AWS configuration."""
    environment = client.environment(server.variables, home=server.folder)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=COMMAND_S, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def test_the_aws_cli_creates_describes_invokes_and_deletes(
    server: Server, registry: Registry, tmp_path: Path
) -> None:
    client = python_client("python2", CLI_AND_SDK_2)

    def aws(service: str, *arguments: str) -> Any:
        said = run(client, server, client.program("aws"), service, *arguments, "--output", "json")
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


def test_the_python_sdk_2_deploys_predicts_updates_and_deletes(
    server: Server, registry: Registry
) -> None:
    client = python_client("python2", CLI_AND_SDK_2)
    seen = used(client, server, registry, "by-sdk", program("sdk_user.py"))
    assert seen["version"].startswith("2.")
    assert (seen["answer"], seen["streamed"], seen["again"]) == ("hello", "hello", "hello")
    assert seen["instances"] == 2
    assert {"Key": "team", "Value": "sdk"} in seen["tags"]
    nothing_is_left(server, "by-sdk")


def test_the_python_sdk_3_deploys_by_resource_classes_and_by_model_builder(
    server: Server, registry: Registry
) -> None:
    client = python_client("python3", SDK_3)
    seen = used(client, server, registry, "by-sdk3", program("sdk3_user.py"))
    assert seen["version"].startswith("3.")
    assert (seen["answer"], seen["built"]) == ("hello", "hello")
    assert seen["instances"] == 2
    assert seen["listed"] == ["by-sdk3"]
    assert ["team", "sdk3"] in seen["tags"]
    assert seen["url"] == MODEL
    nothing_is_left(server, "by-sdk3")


@pytest.mark.parametrize(
    ("name", "made", "invoke_code"),
    [("go", go_client, "ValidationError"), ("javascript", javascript_client, "ValidationError")],
)
def test_other_sdks_create_invoke_scale_measure_and_delete(
    server: Server, registry: Registry, name: str, made: Callable[[], Client], invoke_code: str
) -> None:
    seen = used(made(), server, registry, f"by-{name}")
    assert seen == {
        "status": "InService",
        "answer": "hello",
        "variant": "main",
        "streamed": "hello",
        "policy_alarms": 2,
        "instances": 2,
        "activities": True,
        "of_ecs": 0,
        "sums": [[9.5], [19.0]],
        "same_minute": True,
        "maximum": 3.0,
        "listed": True,
        "alarm_updated": True,
        "alarm_tag": name,
        "typed_error": True,
        "code": seen["code"],
        "endpoint_code": "ValidationException",
        "invoke_code": invoke_code,
        "targets_left": 0,
    }
    assert seen["code"].startswith("InvalidParameterValue")
    nothing_is_left(server, f"by-{name}")


def used(
    client: Client, server: Server, registry: Registry, name: str, *arguments: str
) -> dict[str, Any]:
    """What the client's program printed as its last line."""
    image = f"{registry.address}/server:1"
    said = run(client, server, *client.command, *arguments, name, image, MODEL)
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def program(name: str) -> str:
    return str(Path(__file__).with_name(name))


def nothing_is_left(server: Server, name: str) -> None:
    server.wait_deleted(name)
    assert server.sagemaker.list_models()["Models"] == []
    assert server.sagemaker.list_endpoint_configs()["EndpointConfigs"] == []
