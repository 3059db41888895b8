"""What a node's catalog links, drops and forgets."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.fixtures.layers import image_of, member, open_bytes, tar_of
from tests.fixtures.plugin import wait_until
from zeropull.controlapi.messages import VolumeMount
from zeropull.imagecache.generations import GenerationStore
from zeropull.layers.layout import TEMPORARY_PREFIX, layer_directory
from zeropull.layers.pull import pull_layers
from zeropull.nodeagent.images.catalog import Catalog
from zeropull.nodeagent.records import AgentRecords


class NodeWithVolume:
    """A layer store with the image's two layers, and a volume that has them too."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.image, blobs = image_of([tar_of(member("low")), tar_of(member("top", data=b"t"))])
        self.chain_ids = self.image.chain_ids
        sources: list[object] = list(blobs)
        store = root / "layers"
        pull = pull_layers(
            self.image, [0, 1], sources, store, lambda _: None, open_blob=open_bytes  # type: ignore[arg-type]
        )  # fmt: skip
        asyncio.run(pull)
        layers = {chain: layer_directory(store, chain) for chain in self.chain_ids}
        made = GenerationStore(root / "caches").build("e", [self.image], layers, created_at=1.0)
        # As on another disk: files of its own.
        path = Path(shutil.copytree(made.path, root / "volume"))
        self.volume = VolumeMount(1, str(path), made.index_digest)
        self.catalog = self.opened()

    def opened(self) -> Catalog:
        records = AgentRecords(self.root / "agent")
        return Catalog(self.root / "catalog", self.root / "layers", records)

    def own(self, chain_id: str) -> Path:
        return layer_directory(self.root / "layers", chain_id)

    def in_volume(self, chain_id: str) -> Path:
        return layer_directory(Path(self.volume.path) / "layers", chain_id)


@pytest.fixture
def node(tmp_path: Path) -> NodeWithVolume:
    return NodeWithVolume(tmp_path)


def test_the_nodes_own_layers_come_before_those_of_a_volume(node: NodeWithVolume) -> None:
    low, top = node.chain_ids
    shutil.rmtree(node.own(top))
    found = asyncio.run(node.catalog.link_layers(node.chain_ids, [node.volume]))
    assert [found[chain].path for chain in (low, top)] == [node.own(low), node.in_volume(top)]
    assert [found[chain].from_volume for chain in (low, top)] == [False, True]
    assert node.catalog.linked_to(found)
    assert node.catalog.lineage(top) == [top, low]


def test_an_own_layer_that_is_dropped_goes_and_the_volumes_copy_takes_its_place(
    node: NodeWithVolume,
) -> None:
    low, top = node.chain_ids
    found = asyncio.run(node.catalog.link_layers(node.chain_ids, [node.volume]))
    node.catalog.drop(top, "a block is bad")
    assert not node.catalog.linked_to(found)
    assert node.catalog.dropped == set()
    again = asyncio.run(node.catalog.link_layers(node.chain_ids, [node.volume]))
    assert again[top].path == node.in_volume(top)
    assert node.catalog.failures == 1
    wait_until(lambda: node.catalog.own_layers() == [node.own(low)], lambda: None)
    layers = node.root / "layers"
    wait_until(lambda: not list(layers.glob(f"{TEMPORARY_PREFIX}*")), lambda: None)


def test_a_volumes_layer_that_is_dropped_is_never_used_again(node: NodeWithVolume) -> None:
    low, top = node.chain_ids
    shutil.rmtree(node.own(top))
    asyncio.run(node.catalog.link_layers(node.chain_ids, [node.volume]))
    node.catalog.drop(top, "a block is bad")
    assert node.catalog.target(top) is None
    for catalog in (node.catalog, node.opened()):
        found = asyncio.run(catalog.link_layers(node.chain_ids, [node.volume]))
        assert set(found) == {low}
        assert catalog.dropped == {top}


def test_entries_of_volumes_that_went_are_forgotten(node: NodeWithVolume) -> None:
    low, top = node.chain_ids
    shutil.rmtree(node.own(top))
    asyncio.run(node.catalog.link_layers(node.chain_ids, [node.volume]))
    node.catalog.prune([node.volume])
    assert node.catalog.target(top) == node.in_volume(top)
    node.catalog.prune([])
    assert node.catalog.target(top) is None
    assert node.catalog.target(low) == node.own(low)


def test_a_generation_with_another_index_is_not_looked_at(node: NodeWithVolume) -> None:
    shutil.rmtree(node.own(node.chain_ids[0]))
    other = VolumeMount(1, node.volume.path, "sha256:" + "0" * 64)
    assert set(asyncio.run(node.catalog.link_layers(node.chain_ids, [other]))) == {
        node.chain_ids[1]
    }
    assert node.catalog.damaged_volumes == {Path(node.volume.path)}
