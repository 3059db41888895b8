"""Containers in a user namespace of their own, on cached and on ordinary layers.

containerd maps the layers' owners when it mounts them; without that it would copy the image for
each range of IDs.
"""

from __future__ import annotations

import re
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.containerds import CURRENT, Containerd, binary_dir, running_containerd
from tests.fixtures.images import Entry, directory, make_image, push_image
from tests.fixtures.plugin import Plugin, running_plugin
from tests.fixtures.registry import Registry, running_registry
from tests.fixtures.rootfs import publish_layer, shell_layer
from zeropull.containerd.config import CriSettings
from zeropull.oci.digests import chain_ids
from zeropull.resources.node import SNAPSHOTTER

FIRST_ID = 200_000
OWNER_ABOVE_THE_RANGE = 1_000_700_000


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with running_registry() as registry:
        yield registry


@pytest.fixture
def node() -> Iterator[tuple[Plugin, Containerd]]:
    with (
        running_plugin(f"zptest-{secrets.token_hex(4)}", remaps_ids=True) as plugin,
        running_containerd(CURRENT, plugin, cri=CriSettings("pause:1")) as containerd,
    ):
        yield plugin, containerd


def ctr(containerd: Containerd, *arguments: str) -> str:
    command = [str(binary_dir(CURRENT) / "ctr"), "--address", str(containerd.socket)]
    command += ["--namespace", containerd.namespace, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120.0)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.parametrize("cached", [0, 1, 2])
def test_a_container_with_ids_of_its_own_sees_its_owners_and_copies_nothing(
    node: tuple[Plugin, Containerd], registry: Registry, tmp_path: Path, cached: int
) -> None:
    """With nothing, some and all of it in the cache."""
    plugin, containerd = node
    layers = [
        shell_layer(),
        [
            directory("data"),
            Entry("data/mine", b"x" * 4_000_000),
            Entry("data/foreign", b"y", uid=OWNER_ABOVE_THE_RANGE, gid=OWNER_ABOVE_THE_RANGE),
        ],
    ]
    image = make_image(layers)
    push_image(registry.direct, "mapped", "1", image)
    parent = ""
    for entries, chain_id in list(zip(layers, chain_ids(image.diff_ids), strict=True))[:cached]:
        publish_layer(plugin, tmp_path, entries, chain_id, parent)
        parent = chain_id
    reference = f"{registry.address}/mapped:1"
    ctr(containerd, "images", "pull", "--plain-http", "--snapshotter", SNAPSHOTTER, reference)
    container = f"zp-{secrets.token_hex(4)}"
    said = ctr(
        containerd,
        *("run", "--rm", "--snapshotter", SNAPSHOTTER),
        *("--uidmap", f"0:{FIRST_ID}:65536", "--gidmap", f"0:{FIRST_ID}:65536"),
        *("--remap-labels", "--cgroup", f"{containerd.cgroup}/{container}"),
        *(reference, container, "/bin/sh", "-c"),
        "cat /proc/self/uid_map; test -O /data/mine && echo mine;"
        " test -O /data/foreign || echo foreign; echo new > /data/new && echo written",
    )
    assert re.findall(r"\d+", said.splitlines()[0]) == ["0", str(FIRST_ID), "65536"]
    assert said.split()[3:] == ["mine", "foreign", "written"]
    # No copy of the image in which somebody changed the owners.
    active = ctr(containerd, "snapshots", "--snapshotter", SNAPSHOTTER, "list")
    assert len(active.splitlines()) == 1 + len(layers)
