"""As Kubernetes uses it: images pulled and containers started over the CRI socket."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.containerds import CURRENT, DEBIAN, Containerd, running_containerd
from tests.fixtures.cri import Cri, pb
from tests.fixtures.images import make_image, push_image
from tests.fixtures.mounting import mounts_under
from tests.fixtures.plugin import Plugin, running_plugin
from tests.fixtures.registry import Registry, running_registry
from tests.fixtures.rootfs import message_layer, publish_layer, shell_layer
from tests.integration.snapshotter.test_containerd import resolved
from zeropull.containerd.adopt import adopt_image
from zeropull.containerd.config import CriSettings
from zeropull.oci.digests import chain_ids
from zeropull.resources.node import SNAPSHOTTER

CRI_NAMESPACE = "k8s.io"


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with running_registry() as registry:
        yield registry


@pytest.fixture(params=[DEBIAN, CURRENT])
def node(request: pytest.FixtureRequest, registry: Registry) -> Iterator[tuple[Plugin, Containerd]]:
    """Every image, the pause image too, goes through the plugin."""
    pause = make_image([shell_layer()], {"Entrypoint": ["/bin/sleep", "100000"]})
    push_image(registry.direct, "pause", "1", pause)
    with (
        running_plugin(CRI_NAMESPACE) as plugin,
        running_containerd(
            request.param,
            plugin,
            cri=CriSettings(f"{registry.address}/pause:1", restrict_oom_score=True),
        ) as containerd,
    ):
        yield plugin, containerd


@pytest.mark.parametrize("cached", [True, False], ids=["hit", "miss"])
async def test_a_pod_runs_with_images_through_the_plugin(
    node: tuple[Plugin, Containerd], registry: Registry, tmp_path: Path, cached: bool
) -> None:
    plugin, containerd = node
    layers = [shell_layer(), message_layer(secrets.token_hex(8))]
    image = make_image(layers)
    push_image(registry.direct, "app", "1", image)
    if cached:
        parent = ""
        chains = chain_ids([blob.diff_id for blob in image.layers])
        for entries, chain_id in zip(layers, chains, strict=True):
            publish_layer(plugin, tmp_path, entries, chain_id, parent)
            parent = chain_id
    registry.reset()
    cri = Cri(containerd.socket)
    try:
        code = await _run_pod(cri, containerd, f"{registry.address}/app:1", tmp_path)
    finally:
        await cri.close()
    assert code == 5
    assert len((tmp_path / "app.log").read_text().split()[-1]) == 16
    counts = plugin.counters()
    fetched = [blob for blob in image.layers if registry.counts.matching(blob.digest)]
    if cached:  # the pause image has the app's lowest layer
        assert (counts["hits"], counts["misses"], fetched) == (2, 0, [])
    else:
        assert (counts["hits"], counts["misses"], fetched) == (0, 2, list(image.layers))


async def test_an_image_is_pulled_that_builds_upon_an_adopted_one(
    node: tuple[Plugin, Containerd], registry: Registry, tmp_path: Path
) -> None:
    plugin, containerd = node
    message = secrets.token_hex(8)
    layers = [shell_layer(), message_layer(secrets.token_hex(8)), message_layer(message)]
    base, image = make_image(layers[:2]), make_image(layers)
    push_image(registry.direct, "app", "2", image)
    adopted = resolved(base, "no.registry.test/base:1")
    parent = ""
    for entries, chain_id in zip(layers, adopted.chain_ids, strict=False):
        publish_layer(plugin, tmp_path, entries, chain_id, parent)
        parent = chain_id
    registry.reset()
    cri = Cri(containerd.socket)
    try:
        async with containerd.client() as client:
            await client.namespaces.ensure(plugin.namespace)
            assert await adopt_image(client, SNAPSHOTTER, adopted) == []
            assert len(mounts_under(plugin.mounts)) == 2
            code = await _run_pod(cri, containerd, f"{registry.address}/app:2", tmp_path)
            assert (tmp_path / "app.log").read_text().split()[-1] == message
            await client.images.delete(adopted.reference, sync=True)
    finally:
        await cri.close()
    assert code == 5
    fetched = [blob for blob in image.layers if registry.counts.matching(blob.digest)]
    assert fetched == [image.layers[-1]]


async def _run_pod(cri: Cri, containerd: Containerd, reference: str, logs: Path) -> int:
    """Pod with a host network, image, container; returns its exit code. All is removed again."""
    host = pb.NamespaceOption(network=pb.NODE)
    pod = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="pod", uid=secrets.token_hex(8), namespace="test"),
        log_directory=str(logs),
        linux=pb.LinuxPodSandboxConfig(
            cgroup_parent=containerd.cgroup,
            security_context=pb.LinuxSandboxSecurityContext(namespace_options=host),
        ),
    )
    spec = pb.ImageSpec(image=reference)
    sandbox = await cri.runtime(
        "RunPodSandbox", pb.RunPodSandboxRequest(config=pod), pb.RunPodSandboxResponse
    )
    pulled = await cri.image(
        "PullImage", pb.PullImageRequest(image=spec, sandbox_config=pod), pb.PullImageResponse
    )
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="app"),
        image=pb.ImageSpec(image=pulled.image_ref),
        command=["/bin/sh", "-c", "cat /etc/message; exit 5"],
        log_path="app.log",
        linux=pb.LinuxContainerConfig(
            security_context=pb.LinuxContainerSecurityContext(namespace_options=host)
        ),
    )
    created = await cri.runtime(
        "CreateContainer",
        pb.CreateContainerRequest(
            pod_sandbox_id=sandbox.pod_sandbox_id, config=config, sandbox_config=pod
        ),
        pb.CreateContainerResponse,
    )
    container_id = created.container_id
    await cri.runtime("StartContainer", pb.StartContainerRequest(container_id=container_id))
    code = await _exit_code(cri, container_id)
    await cri.runtime("RemoveContainer", pb.RemoveContainerRequest(container_id=container_id))
    sandbox_id = sandbox.pod_sandbox_id
    await cri.runtime("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=sandbox_id))
    await cri.runtime("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox_id))
    await cri.image("RemoveImage", pb.RemoveImageRequest(image=spec))
    return code


async def _exit_code(cri: Cri, container_id: str) -> int:
    async with asyncio.timeout(20):
        while True:
            answer = await cri.runtime(
                "ContainerStatus",
                pb.ContainerStatusRequest(container_id=container_id),
                pb.ContainerStatusResponse,
            )
            if answer.status.state == pb.CONTAINER_EXITED:
                return int(answer.status.exit_code)
            await asyncio.sleep(0.02)
