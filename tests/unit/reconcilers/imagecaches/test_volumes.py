"""An older generation is detached once its node has let go of it, and only then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.messages import NodeAssignment, NodeReport, VolumeMount
from zeropull.errors import Conflict
from zeropull.providers.protocol import Volume
from zeropull.reconcilers.imagecaches.volumes import DETACH_RETRY, Volumes
from zeropull.resources.image_caches import GenerationRecord, GenerationState
from zeropull.resources.instances import AttachedVolume, Instance, InstanceState
from zeropull.statestore import Store

NODE = "i-" + "0" * 17
OLD, NEW = AttachedVolume(1, "/v/1", "one"), AttachedVolume(2, "/v/2", "two")
INSTANCE = Instance(
    NODE, "0", "u", "demo", "main", "ml.g5.xlarge", "d", InstanceState.RUNNING, "t", 0.0,
    volumes=(OLD, NEW),
)  # fmt: skip


class Fleet:
    """Attached generations of one node; `busy` ones cannot be detached."""

    def __init__(self) -> None:
        self.attached = {1}
        self.busy = False

    async def attach(self, instance_id: str, volume: Volume) -> str:
        self.attached.add(volume.generation)
        return f"/v/{volume.generation}"

    async def detach(self, instance_id: str, generation: int) -> None:
        if self.busy:
            raise Conflict(f"generation {generation} is still in use on {instance_id}")
        self.attached.discard(generation)


class Node:
    """What the control plane and one node tell each other."""

    def __init__(self, store: Store) -> None:
        self.store, self.fleet, self.exchange = store, Fleet(), Exchange()
        self.now_s = 100.0
        self.volumes = Volumes(
            store,
            self.exchange,
            self.fleet,  # type: ignore[arg-type]  # nothing else of a provider is asked for
            lambda: self.now_s,
        )
        store.put(INSTANCE)

    @property
    def instance(self) -> Instance:
        return self.store.require(Instance, NODE).document

    def tell(self, *generations: int) -> int:
        mounts = tuple(VolumeMount(n, f"/v/{n}", "digest") for n in generations)
        assignment = NodeAssignment(0, NODE, volumes=mounts)
        return self.exchange.publish_assignment(assignment, self.now_s)

    def hear(self, version: int) -> None:
        self.exchange.take_node_report(NodeReport(NODE, version, 0.0, 0.0), self.now_s)

    def due(self) -> tuple[int, ...]:
        return self.volumes.to_detach(self.instance, self.now_s)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Store.open(tmp_path / "store.db") as store:
        yield Node(store)


async def test_a_generation_leaves_only_after_its_node_has_let_go_of_it(node: Node) -> None:
    before = node.tell(1, 2)
    node.hear(before)
    node.volumes.mark([node.instance], {NODE: frozenset({1})})
    assert [v.leaving for v in node.instance.volumes] == [True, False]
    assert node.due() == (), "the node is still told of it"
    version = node.tell(2)
    assert node.due() == (), "the node has not acted on it"
    node.hear(version)
    assert node.due() == (1,)
    await node.volumes.detach(NODE, node.due())
    assert node.fleet.attached == set()
    assert node.instance.volumes == (NEW,)
    assert node.due() == ()


async def test_a_generation_that_is_in_use_is_tried_again_with_growing_pauses(node: Node) -> None:
    node.volumes.mark([node.instance], {NODE: frozenset({1})})
    node.hear(node.tell(2))
    node.fleet.busy = True
    for failures in (1, 2, 3):
        await node.volumes.detach(NODE, node.due())
        assert node.due() == ()
        node.now_s += DETACH_RETRY.after(failures)
        assert node.due() == (1,)
    node.fleet.busy = False
    await node.volumes.detach(NODE, node.due())
    assert node.fleet.attached == set()


def test_a_generation_that_is_needed_again_stays(node: Node) -> None:
    node.volumes.mark([node.instance], {NODE: frozenset({1})})
    node.volumes.mark([node.instance], {})
    assert node.instance.volumes == (OLD, NEW)


async def test_a_generation_that_is_attached_again_is_no_longer_leaving(node: Node) -> None:
    node.volumes.mark([node.instance], {NODE: frozenset({1})})
    again = GenerationRecord(1, GenerationState.PUBLISHED, 0.0, (), "one", "/g/1")
    await node.volumes.attach(NODE, again)
    assert not any(v.leaving for v in node.instance.volumes)
    assert replace(OLD, leaving=False) in node.instance.volumes
