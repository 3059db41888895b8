"""Images that containerd 2 unpacks itself: layers beside each other, and by another snapshotter."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.containerds import CURRENT, Containerd, binary_dir, running_containerd
from tests.fixtures.images import Entry, Image, directory, make_image, push_image
from tests.fixtures.mounting import mounted
from tests.fixtures.plugin import Plugin, running_plugin
from tests.fixtures.registry import Registry, running_registry
from tests.fixtures.rootfs import publish_layer
from zeropull.containerd.config import CriSettings
from zeropull.oci.digests import chain_ids
from zeropull.resources.node import SNAPSHOTTER

UNPACKS = '[plugins."io.containerd.transfer.v1.local"]\n  max_concurrent_unpacks = 4\n'


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with running_registry() as registry:
        yield registry


def with_rebase(configuration: str) -> str:
    declared = 'type = "snapshot"\n  capabilities = ["rebase"]'
    return configuration.replace('type = "snapshot"', declared) + UNPACKS


@pytest.fixture(params=[with_rebase])
def node(request: pytest.FixtureRequest) -> Iterator[tuple[Plugin, Containerd]]:
    with (
        running_plugin(f"zptest-{secrets.token_hex(4)}") as plugin,
        running_containerd(
            CURRENT, plugin, cri=CriSettings("pause:1"), adjust=request.param
        ) as containerd,
    ):
        yield plugin, containerd


def ctr(containerd: Containerd, *arguments: str) -> str:
    command = [str(binary_dir(CURRENT) / "ctr"), "--address", str(containerd.socket)]
    command += ["--namespace", containerd.namespace, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120.0)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def layers() -> list[list[Entry]]:
    """The upper two delete a file and hide a folder of the lowest."""
    return [
        [
            directory("etc"),
            Entry("etc/deleted", secrets.token_bytes(8)),
            directory("hidden"),
            Entry("hidden/old", b"old"),
            Entry("kept", b"kept"),
        ],
        [directory("etc"), Entry("etc/.wh.deleted"), Entry("second", b"2")],
        [directory("hidden"), Entry("hidden/.wh..wh..opq"), Entry("hidden/new", b"new")],
    ]


async def shown(containerd: Containerd, image: Image, target: Path) -> set[str]:
    async with containerd.client() as client, client.leased() as leased:
        key = f"see-{secrets.token_hex(3)}"
        top = chain_ids(image.diff_ids)[-1]
        mounts = await leased.snapshots(SNAPSHOTTER).prepare(key, top)
        with mounted(mounts, target) as root:
            return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("cached", [0, 2, 3])
async def test_layers_that_are_unpacked_beside_each_other_make_the_same_image(
    node: tuple[Plugin, Containerd], registry: Registry, tmp_path: Path, cached: int
) -> None:
    """With nothing, some and all of it in the cache."""
    plugin, containerd = node
    entries = layers()
    image = make_image(entries)
    push_image(registry.direct, "apart", "1", image)
    parent = ""
    for number, chain_id in enumerate(chain_ids(image.diff_ids)[:cached]):
        if number == 0:
            publish_layer(plugin, tmp_path, entries[0], chain_id, parent)
        else:  # whiteouts as overlayfs has them are not made by the fixture: files only
            plain = [each for each in entries[number] if ".wh." not in each.name]
            publish_layer(plugin, tmp_path, plain, chain_id, parent)
        parent = chain_id
    reference = f"{registry.address}/apart:1"
    ctr(containerd, "images", "pull", "--plain-http", "--snapshotter", SNAPSHOTTER, reference)
    files = await shown(containerd, image, tmp_path / "m")
    expected = {"kept", "second", "hidden/new"}
    if cached >= 2:
        expected.add("etc/deleted")
    if cached >= 3:
        expected.add("hidden/old")
    assert files == expected
    assert plugin.counters()["hits"] == cached
    assert "parallel=true" in containerd.log_file.read_text()


@pytest.mark.parametrize("node", [str], indirect=True)
def test_overlayfs_unpacks_beside_the_plugin(
    node: tuple[Plugin, Containerd], registry: Registry
) -> None:
    _, containerd = node
    push_image(registry.direct, "plain", "1", make_image(layers()))
    reference = f"{registry.address}/plain:1"
    ctr(containerd, "images", "pull", "--plain-http", "--snapshotter", "overlayfs", reference)
    assert "sha256:" in ctr(containerd, "snapshots", "--snapshotter", "overlayfs", "list")
