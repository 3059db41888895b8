"""Bits that flip on a node's disk are found, and the layer is pulled again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest

from tests.fixtures.layers import image_of, member, open_bytes, tar_of
from tests.fixtures.plugin import wait_until
from zeropull.controlapi.messages import VolumeMount
from zeropull.imagecache.generations import GenerationStore
from zeropull.layers.layout import LAYER_FILE, LAYER_FILES, layer_directory
from zeropull.layers.pull import pull_layers
from zeropull.nodeagent.images.catalog import Catalog
from zeropull.nodeagent.images.image_on_node import ImageOnNode
from zeropull.nodeagent.images.node_images import NodeImages
from zeropull.nodeagent.images.scrubbing import Scrubber, ScrubPace, plan_pass
from zeropull.nodeagent.quiet_times import LaunchesUnderWay
from zeropull.nodeagent.records import AgentRecords
from zeropull.resources.node import SNAPSHOTTER

DAY_S = 86_400.0
OFFSETS = {"data.erofs": 300_000, "meta.erofs": 2000, "blocks.blake3": 40}
LAYERS = [
    tar_of(member("low", data=b"l" * 700_000)),
    tar_of(member("top", data=b"t" * 700_000)),
]


class ReadyImages:
    """The images of a node, of which the scrubber reads `ready` and spoils some."""

    def __init__(self, *images: ImageOnNode) -> None:
        self.ready = {image.manifest_digest: image for image in images}

    def spoil(self, manifest_digest: str) -> None:
        del self.ready[manifest_digest]


class ScrubbedNode:
    """A node with one image of two layers in its own store, ready to be run."""

    def __init__(self, root: Path) -> None:
        self.root, self.now_s = root, 1000.0
        self.image, self.blobs = image_of(LAYERS)
        self.chain_ids = tuple(self.image.chain_ids)
        self.catalog = Catalog(root / "catalog", root / "layers", AgentRecords(root / "agent"))
        self.replaced: list[tuple[str, str]] = []
        self.suspects: set[str] = set()
        self.launches = LaunchesUnderWay()
        self.images = ReadyImages(self._on_node())
        self.scrubber = Scrubber(
            self.catalog,
            cast(NodeImages, self.images),
            self.launches,
            lambda digest, reason: self.replaced.append((digest, reason)),
            pace=ScrubPace(DAY_S, 0),
            suspects=lambda: self.suspects,
            clock=lambda: self.now_s,
        )

    def _on_node(self) -> ImageOnNode:
        digest = self.image.manifest_digest
        chains = self.chain_ids
        return ImageOnNode(digest, "name", SNAPSHOTTER, b"", chains, "fallback", 0, 0, 0, 0)

    async def pull(self) -> None:
        missing = [n for n, chain in enumerate(self.chain_ids) if not self.own(chain).is_dir()]
        sources = [self.blobs[number] for number in missing]
        await pull_layers(
            self.image, missing, sources, self.catalog.layers, self.own, open_blob=open_bytes
        )
        await self.catalog.link_layers(self.chain_ids, ())

    def own(self, chain_id: str) -> Path:
        return layer_directory(self.catalog.layers, chain_id)


def flip(path: Path, offset: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    with path.open("r+b") as file:  # the same inode, as a disk would do it
        file.write(content)


@pytest.fixture
def node(tmp_path: Path) -> ScrubbedNode:
    return ScrubbedNode(tmp_path)


@pytest.mark.parametrize("name", LAYER_FILES)
async def test_a_flipped_bit_in_the_nodes_own_store_is_found(node: ScrubbedNode, name: str) -> None:
    await node.pull()
    top = node.chain_ids[1]
    await node.scrubber.scrub_due()
    assert node.replaced == []
    path = node.own(top) / name
    flip(path, path.read_bytes().index(b"diff_id") + 20 if name == LAYER_FILE else OFFSETS[name])
    node.now_s += DAY_S
    await node.scrubber.scrub_due()
    [(digest, reason)] = node.replaced
    assert digest == node.image.manifest_digest
    assert f"layer {top} on the node's disk is damaged" in reason
    assert node.images.ready == {}
    assert node.catalog.target(top) is None
    assert not node.own(top).exists()
    assert node.catalog.dropped == set(), "a volume may have a good copy"
    assert node.catalog.target(node.chain_ids[0]) == node.own(node.chain_ids[0])
    await node.pull()
    node.images.ready[digest] = node._on_node()
    await node.scrubber.scrub_due()
    assert len(node.replaced) == 1
    wait_until(lambda: len(list(node.catalog.layers.iterdir())) == 2, lambda: None)


async def test_a_pass_verifies_each_layer_once_in_the_interval(node: ScrubbedNode) -> None:
    await node.pull()
    await node.scrubber.scrub_due()
    flip(node.own(node.chain_ids[0]) / "data.erofs")
    node.now_s += DAY_S - 1
    await node.scrubber.scrub_due()
    assert node.replaced == [], "not before its time"
    node.now_s += 1
    await node.scrubber.scrub_due()
    assert len(node.replaced) == 1


async def test_layers_that_no_image_uses_are_verified_as_well(node: ScrubbedNode) -> None:
    await node.pull()
    node.images.ready.clear()
    flip(node.own(node.chain_ids[0]) / "data.erofs")
    await node.scrubber.scrub_due()
    assert not node.own(node.chain_ids[0]).exists()
    assert node.own(node.chain_ids[1]).is_dir()


async def test_a_layer_that_the_control_plane_suspects_is_verified_at_once(
    node: ScrubbedNode,
) -> None:
    await node.pull()
    await node.scrubber.scrub_due()
    low = node.chain_ids[0]
    flip(node.own(low) / "data.erofs")
    await node.scrubber.scrub_once()
    assert node.replaced == []
    node.suspects = {low}
    await node.scrubber.scrub_once()
    assert len(node.replaced) == 1
    await node.pull()
    await node.scrubber.scrub_once()
    assert node.own(low).is_dir()


async def test_a_volumes_copy_is_not_the_nodes_own(node: ScrubbedNode, tmp_path: Path) -> None:
    other = ScrubbedNode(tmp_path / "other")
    await other.pull()
    sources = {chain: other.own(chain) for chain in other.chain_ids}
    caches = GenerationStore(tmp_path / "caches")
    made = await asyncio.to_thread(lambda: caches.build("e", [node.image], sources, created_at=1.0))
    volume = VolumeMount(1, str(made.path), made.index_digest)
    low, top = node.chain_ids
    await node.catalog.link_layers(node.chain_ids, (volume,))
    in_volume = node.catalog.target(top)
    assert in_volume is not None
    flip(in_volume / "data.erofs")
    await node.scrubber.scrub_once()
    [(_, reason)] = node.replaced
    assert f"layer {top} on a cache volume is damaged" in reason
    assert node.catalog.dropped == {top}
    assert list(await node.catalog.link_layers(node.chain_ids, (volume,))) == [low]


async def test_nothing_is_read_while_something_starts(node: ScrubbedNode) -> None:
    await node.pull()
    flip(node.own(node.chain_ids[0]) / "data.erofs")
    node.launches.note("copy", is_launching=True)
    scrubbing = asyncio.create_task(node.scrubber.scrub_due())
    await asyncio.sleep(0.3)
    assert node.replaced == []
    node.launches.note("copy", is_launching=False)
    await scrubbing
    assert len(node.replaced) == 1


def test_the_layer_that_was_verified_longest_ago_comes_first() -> None:
    a, b, c, d = (Path(name) for name in "abcd")
    verified_s = {a: 50.0, b: 20.0, c: 99.0}
    assert plan_pass([a, b, c, d], verified_s, 150.0, 60.0) == [d, b, a]
    assert plan_pass([a, b], verified_s, 60.0, 60.0) == []


async def test_a_pull_replaces_own_metadata_that_is_damaged(node: ScrubbedNode) -> None:
    """It stood in the way of the layer that was pulled for it."""
    await node.pull()
    low, top = node.chain_ids
    flip(node.own(low) / "meta.erofs", 2000)
    again = Catalog(node.root / "catalog", node.root / "layers", AgentRecords(node.root / "agent"))
    node.catalog = again  # an agent that starts anew has verified nothing
    assert list(await again.link_layers(node.chain_ids, ())) == [top]
    await node.pull()
    assert set(await again.link_layers(node.chain_ids, ())) == {low, top}


async def test_a_pass_keeps_to_its_pace(node: ScrubbedNode) -> None:
    await node.pull()
    paced = Scrubber(
        node.catalog,
        cast(NodeImages, node.images),
        node.launches,
        lambda digest, reason: None,
        pace=ScrubPace(DAY_S, 2_000_000),
    )
    began_s = asyncio.get_running_loop().time()
    await paced.scrub_due()
    took_s = asyncio.get_running_loop().time() - began_s
    # Twice three blocks of 256 KiB, the last one of each counted as whole.
    assert took_s >= 1_400_000 / 2_000_000
