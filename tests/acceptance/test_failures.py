"""Deployments that cannot succeed: Failed with a reason that helps, and a later attempt succeeds.

All of them are made at once on one server, since some take the whole minute that SageMaker's
smallest health check time-out leaves a container; each test then looks at its own.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.acceptance.images import server_image_with
from tests.acceptance.serving import Server, running_server
from tests.fixtures.images import push_image
from tests.fixtures.registry import Registry
from tests.fixtures.relay import free_port
from tests.fixtures.s3 import Store

QUICKEST = 60  # seconds: the smallest ContainerStartupHealthCheckTimeoutInSeconds of the API
LIMIT_S = 150.0


@dataclass
class Bad:
    """`reason`: what the FailureReason must tell; `mend`: what a person would do about it."""

    image: str
    reason: tuple[str, ...]
    mend: Callable[[], None] = lambda: None
    better_image: str | None = None
    model: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


def archive() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        member = tarfile.TarInfo("weights.bin")
        member.size = 1 << 20
        tar.addfile(member, io.BytesIO(os.urandom(member.size)))
    return content.getvalue()


def make_cases(registry: Registry, store: Store) -> dict[str, Bad]:
    good = f"{registry.address}/server:1"
    s3 = store.client()

    def put(key: str, body: bytes) -> Callable[[], None]:
        return lambda: s3.put_object(Bucket="artifacts", Key=key, Body=body)

    whole = archive()
    put("truncated.tar.gz", whole[: len(whole) // 2])()

    damaged = server_image_with("damaged")
    push_image(registry.address, "damaged", "1", damaged)
    blob = registry.blob_path(damaged.layers[-1].digest)
    intact = blob.read_bytes()
    blob.write_bytes(intact[:-500] + bytes(byte ^ 0xFF for byte in intact[-500:]))

    foreign = server_image_with("foreign", architecture="s390x")
    push_image(registry.address, "foreign", "1", foreign)

    closed = f"127.0.0.1:{free_port()}"
    exits = {"SERVER_BEHAVIOUR": "exit-at-start", "SERVER_EXIT_CODE": "41"}
    return {
        "unknown-image": Bad(
            f"{registry.address}/server:none",
            ("Please make sure all images", "server:none"),
            mend=lambda: None,
            better_image=good,
        ),
        "unreachable-registry": Bad(
            f"{closed}/server:1", ("Please make sure all images", closed), better_image=good
        ),
        "wrong-digest": Bad(
            f"{registry.address}/damaged:1",
            ("Please make sure all images", damaged.layers[-1].digest),
            mend=partial(_write, blob, intact),
        ),
        "other-architecture": Bad(
            f"{registry.address}/foreign:1", ("linux/s390x", "linux/amd64"), better_image=good
        ),
        "exits": Bad(
            good,
            ("did not pass the ping health check", "exited with status 41", "exiting as asked"),
            environment=exits,
        ),
        "never-answers": Bad(
            good,
            ("did not pass the ping health check", "within 60 s", "ContainerStartupHealthCheck"),
            environment={"SERVER_BEHAVIOUR": "hang"},
        ),
        "answers-500": Bad(
            good,
            ("did not pass the ping health check", "500", "ContainerStartupHealthCheck"),
            environment={"SERVER_BEHAVIOUR": "ping-never"},
        ),
        "model-missing": Bad(
            good,
            ("Failed to download model data", "s3://artifacts/missing.tar.gz"),
            model="s3://artifacts/missing.tar.gz",
            mend=put("missing.tar.gz", whole),
        ),
        "model-truncated": Bad(
            good,
            ("Failed to download model data", "s3://artifacts/truncated.tar.gz", "truncated"),
            model="s3://artifacts/truncated.tar.gz",
            mend=put("truncated.tar.gz", whole),
        ),
    }


NAMES = (
    "unknown-image", "unreachable-registry", "wrong-digest", "other-architecture", "exits",
    "never-answers", "answers-500", "model-missing", "model-truncated",
)  # fmt: skip


@pytest.fixture(scope="module")
def cases(registry: Registry, store: Store) -> dict[str, Bad]:
    found = make_cases(registry, store)
    assert tuple(found) == NAMES
    return found


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, cases: dict[str, Bad], store: Store
) -> Iterator[Server]:
    access: dict[str, Any] = {
        "endpoint": store.endpoint,
        "region": store.region,
        "access_key_id": store.access_key_id,
        "secret_access_key": store.secret_access_key,
    }
    settings: dict[str, Any] = {"buckets.artifacts": access}
    with running_server(tmp_path_factory.mktemp("zp"), **settings) as server:
        for name, case in cases.items():
            server.deploy(
                name,
                case.image,
                model=case.model,
                environment=case.environment,
                ContainerStartupHealthCheckTimeoutInSeconds=QUICKEST,
            )
        yield server


@pytest.mark.parametrize("name", NAMES)
def test_it_fails_with_a_reason_that_tells_what_to_do(
    server: Server, cases: dict[str, Bad], name: str
) -> None:
    reason = server.wait_failed(name, LIMIT_S)
    for part in cases[name].reason:
        assert part in reason, reason


@pytest.fixture(scope="module")
def mended(server: Server, cases: dict[str, Bad]) -> Server:
    """Every endpoint deleted, its cause mended, and made again under the same name."""
    for case in cases.values():
        case.mend()
    for name, case in cases.items():
        server.delete_all(name)
        server.deploy(name, case.better_image or case.image, model=case.model)
    return server


@pytest.mark.parametrize("name", NAMES)
def test_a_later_attempt_succeeds(mended: Server, name: str) -> None:
    mended.wait_served(name, limit_s=LIMIT_S)
    assert mended.invoke(name) == b"hello"
    if name.startswith("model-"):
        assert mended.show(name, "models") == {"weights.bin": 1 << 20}


def test_a_container_that_answers_500_is_the_models_error(
    server: Server, registry: Registry
) -> None:
    server.delete_all("invocations-500")  # of a try before
    server.deploy(
        "invocations-500",
        f"{registry.address}/server:1",
        environment={"SERVER_BEHAVIOUR": "invocations-500"},
    )
    server.wait_served("invocations-500", limit_s=LIMIT_S)
    with pytest.raises(ClientError) as caught:
        server.invoke("invocations-500")
    answer: Any = caught.value.response
    assert answer["Error"]["Code"] == "ModelError"
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert answer["OriginalStatusCode"] == 500
    assert answer["OriginalMessage"].startswith("the model failed")


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
