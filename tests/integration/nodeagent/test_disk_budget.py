"""A small node disk: what does not fit is refused, what is unused makes room, and no more."""

from __future__ import annotations

import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.fixtures.images import Entry
from tests.fixtures.registry import Registry
from tests.fixtures.s3 import running_s3
from tests.integration.nodeagent.conftest import (
    Fleet,
    Generation,
    Node,
    ask,
    assignment_of,
    copy_of,
    probe,
    push,
    running_fleet,
)
from tests.integration.nodeagent.test_damage import stage_of
from zeropull.containerd.client import ContainerdClient
from zeropull.controlapi.messages import (
    CopyState,
    FailureKind,
    ImageAssignment,
    ImagePath,
    ModelArtifact,
    StoreAccess,
)
from zeropull.resources.stages import Stage

MIB = 1 << 20


def own_layers(node: Node) -> dict[str, int]:
    """Bytes of every layer directory of the node, unfinished ones too."""
    return {
        folder.name: sum(file.stat().st_size for file in folder.iterdir())
        for folder in (node.disk / "layers").iterdir()
    }


@pytest.mark.parametrize(("budget", "said"), [(5 * MIB, "needs"), (20 * MIB, "unpacks to more")])
async def test_an_image_that_does_not_fit_is_refused_with_the_arithmetic(
    fleet: Fleet, server_image: ImageAssignment, budget: int, said: str
) -> None:
    node = await fleet.launch(disk_bytes=budget)
    node.assign(assignment_of(server_image, copy_of(server_image, "large")))
    failed = await node.until_copy("large", CopyState.BACKOFF, CopyState.FAILED)
    assert failed.failure is FailureKind.DISK_FULL
    assert said in failed.message
    assert f"budget is {budget:,} bytes" in failed.message
    assert not [name for name in own_layers(node) if name.startswith(".tmp-")]
    report = await node.until(lambda report: report.images[0].failure is not None)
    assert report.images[0].failure is FailureKind.DISK_FULL


async def test_containerds_own_pull_is_held_to_the_budget_too(
    fleet: Fleet, server_image: ImageAssignment
) -> None:
    image = ImageAssignment(
        server_image.reference, server_image.manifest_digest, path=ImagePath.CONTAINERD
    )
    node = await fleet.launch(disk_bytes=5 * MIB, bits_per_s=20_000_000)
    node.assign(assignment_of(image, copy_of(image, "large")))
    failed = await node.until_copy("large", CopyState.BACKOFF, CopyState.FAILED)
    assert failed.failure is FailureKind.DISK_FULL, failed
    namespace = node.names.containerd_namespace
    async with ContainerdClient(node.names.containerd_socket, namespace) as client:
        assert await client.leases.list() == []


async def test_unused_layers_make_room_and_used_ones_stay(
    fleet: Fleet, registry: Registry, pulled: Generation
) -> None:
    images = [
        push(registry, f"big{n}", probe(extra=[Entry("srv/big", os.urandom(20 * MIB))], tag=str(n)))
        for n in range(3)
    ]
    shared = sum(file.stat().st_size for file in pulled.volume.path.glob("layers/*/*"))
    # Room for two of the large layers, not for three.
    node = await fleet.launch(disk_bytes=shared + 55 * MIB)
    node.assign(assignment_of(images[0], copy_of(images[0], "zero")))
    await node.until_copy("zero", CopyState.HEALTHY)
    of_zero = set(own_layers(node))
    both = assignment_of(
        images[0], copy_of(images[0], "zero"), copy_of(images[1], "one"), images=tuple(images[:2])
    )
    node.assign(both)
    one = await node.until_copy("one", CopyState.HEALTHY, CopyState.BACKOFF)
    assert one.state is CopyState.HEALTHY, one
    (of_one,) = set(own_layers(node)) - of_zero

    node.assign(assignment_of(images[0], copy_of(images[0], "zero")))
    await node.until(lambda report: [each.copy_id for each in report.copies] == ["zero"])
    third = assignment_of(
        images[0],
        copy_of(images[0], "zero"),
        copy_of(images[2], "two"),
        images=(images[0], images[2]),
    )
    node.assign(third)
    two = await node.until_copy("two", CopyState.HEALTHY, CopyState.BACKOFF)
    assert two.state is CopyState.HEALTHY, two
    left = set(own_layers(node))
    assert of_one not in left
    assert of_zero < left
    zero = node.copy("zero")
    assert zero is not None
    assert (await ask(zero, do="look"))["argv"] == ["serve"]


async def test_a_slow_pull_tells_how_far_it_is(fleet: Fleet, server_image: ImageAssignment) -> None:
    for path in (ImagePath.FALLBACK, ImagePath.CONTAINERD):
        image = ImageAssignment(server_image.reference, server_image.manifest_digest, path=path)
        node = await fleet.launch(bits_per_s=40_000_000)
        node.assign(assignment_of(image, copy_of(image, path)))
        report = await node.until(
            lambda report: bool(
                report.copies
                and report.copies[0].stages
                and "layers here" in report.copies[0].stages[0].detail
            )
        )
        stage = report.copies[0].stages[0]
        assert stage.ended_s is None
        here, total = stage.detail.split(" B ")[0].split(" of ")
        assert 0 <= int(here.replace(",", "")) <= int(total.replace(",", ""))
        assert int(total.replace(",", "")) > 10_000_000
        ended = await node.until_copy(path, CopyState.HEALTHY)
        assert stage_of(ended, Stage.IMAGE).detail.endswith("B from the registry")


@pytest.fixture
def https_models(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Base URL of a server with a certificate that the nodes trust, over `root`/https."""
    folder = fleet.root / "https"
    folder.mkdir()
    certificate, key = fleet.root / "certificate.pem", fleet.root / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=tests", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


async def test_models_come_from_s3_and_https_and_the_least_recently_used_goes(
    fleet: Fleet, probe_image: ImageAssignment, https_models: str
) -> None:
    size = 20 * MIB
    (fleet.root / "https" / "b.bin").write_bytes(os.urandom(size))
    with running_s3() as store:
        client = store.client()
        client.create_bucket(Bucket="models")
        client.put_object(Bucket="models", Key="a.bin", Body=os.urandom(size))
        access = StoreAccess(
            endpoint=store.endpoint,
            region=store.region,
            access_key_id=store.access_key_id,
            secret_access_key=store.secret_access_key,
        )
        artifacts = {
            "s3": ModelArtifact("s3://models/a.bin", access=access),
            "https": ModelArtifact(f"{https_models}/b.bin"),
            "private": ModelArtifact("s3://models/a.bin", access=access),
        }
        for url in (store.endpoint, https_models):
            await fleet.provider.allow_loopback_port(int(url.rpartition(":")[2]))
        node = await fleet.launch(disk_bytes=200 * MIB)
        folder = node.disk / "models"
        seen: dict[str, set[str]] = {}
        for name, artifact in artifacts.items():
            copy = copy_of(
                probe_image, name, artifacts=(artifact,), enable_caching=name != "private"
            )
            node.assign(assignment_of(probe_image, copy))
            healthy = await node.until_copy(name, CopyState.HEALTHY, CopyState.FAILED)
            assert healthy.state is CopyState.HEALTHY, healthy
            spent = stage_of(healthy, Stage.MODEL).bytes_by_source["model_store"]
            assert spent == size
            file = artifact.url.rpartition("/")[2]
            assert (await ask(healthy, do="look"))["models"] == [file]
            seen[name] = {path.name for path in folder.iterdir()}
        # Without caching the copy had one of its own, although the node has the artifact.
        (own,) = seen["private"] - seen["https"]
        assert own.startswith("own-")

        # It goes with its copy; the cached one is used again without a byte.
        again = copy_of(probe_image, "again", artifacts=(artifacts["s3"],))
        node.assign(assignment_of(probe_image, again))
        healthy = await node.until_copy("again", CopyState.HEALTHY)
        assert stage_of(healthy, Stage.MODEL).bytes_by_source["model_store"] == 0
        await node.until(lambda report: [each.copy_id for each in report.copies] == ["again"])
        assert {path.name for path in folder.iterdir()} == seen["https"]

        # Half of the disk is for models: the third large one pushes out the one used longest ago.
        large = ModelArtifact("s3://models/c.bin", access=access)
        client.put_object(Bucket="models", Key="c.bin", Body=os.urandom(70 * MIB))
        more = copy_of(probe_image, "more", artifacts=(large,))
        node.assign(assignment_of(probe_image, again, more))
        await node.until_copy("more", CopyState.HEALTHY)
        (of_https,) = seen["https"] - seen["s3"]
        names = {path.name for path in folder.iterdir()}
        assert of_https not in names
        assert seen["s3"] < names

        # What is larger than the disk is refused.
        huge = ModelArtifact("s3://models/d.bin", access=access)
        client.put_object(Bucket="models", Key="d.bin", Body=bytes(90 * MIB))
        node.assign(
            assignment_of(probe_image, again, more, copy_of(probe_image, "huge", artifacts=(huge,)))
        )
        failed = await node.until_copy("huge", CopyState.BACKOFF, CopyState.FAILED)
        assert failed.failure is FailureKind.DISK_FULL
        assert f"{200 * MIB:,} bytes" in failed.message
        assert {path.name for path in Path(folder).iterdir()} == names


async def test_a_container_that_writes_more_than_it_may_is_ended_with_the_reason(
    registry: Registry, probe_image: ImageAssignment
) -> None:
    async with running_fleet(registry, copy_disk_bytes=64 << 20) as fleet:
        node = await fleet.launch()
        node.assign(assignment_of(probe_image, copy_of(probe_image, "filler")))
        healthy = await node.until_copy("filler", CopyState.HEALTHY)
        await ask(healthy, do="fill", path="/tmp/large", bytes=200 << 20)
        ended = await node.until_copy("filler", CopyState.BACKOFF)
        assert ended.failure is FailureKind.DISK_FULL
        assert "fleet.copy_disk_bytes" in ended.message
        # Its files have gone with the container, and the next one begins anew.
        again = await node.until_copy("filler", CopyState.HEALTHY)
        assert again.restarts == 1
