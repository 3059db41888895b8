"""What the node agent asks of a real receiver, also when either was started anew."""

from __future__ import annotations

import asyncio

from tests.fixtures.delivery import running_node, running_source
from zeropull.controlapi.messages import VolumeMount
from zeropull.nodeagent.images.arriving_volumes import ArrivingVolumes


async def test_another_agent_has_the_rest_brought_and_lets_go_of_what_an_earlier_one_had() -> None:
    with running_source() as source, running_node(source.address("i-1")) as node:
        made = await asyncio.to_thread(source.make)
        path = node.folder / "volumes" / str(made.generation.number)
        volume = VolumeMount(made.generation.number, str(path), made.generation.index_digest)
        receiver = node.run_dir / "receiver.sock"
        earlier = ArrivingVolumes(receiver)
        await earlier.bring([volume])
        assert await earlier.newly_broken() == frozenset()
        assert path.is_dir()

        later = ArrivingVolumes(receiver)
        assert await later.newly_broken() == frozenset()
        await later.keep_only([volume])
        await later.bring_rest()
        await asyncio.to_thread(node.until, node.is_whole)
        assert path.is_dir()
        await later.keep_only([])
        assert not path.exists()


async def test_layers_that_a_dead_receiver_could_not_hold_are_told_once() -> None:
    with running_source() as source, running_node(source.address("i-1"), "fuse") as node:
        made = await asyncio.to_thread(source.make)
        path = node.folder / "volumes" / str(made.generation.number)
        volume = VolumeMount(made.generation.number, str(path), made.generation.index_digest)
        agent = ArrivingVolumes(node.run_dir / "receiver.sock")
        await agent.bring([volume])
        assert await agent.newly_broken() == frozenset()
        node.kill_receiver()
        assert await agent.newly_broken() == frozenset(), "nobody answers now"
        node.start_receiver()
        assert await agent.newly_broken() == frozenset(made.image.chain_ids)
        assert await agent.newly_broken() == frozenset()
        await agent.bring_rest()
        await asyncio.to_thread(node.until, node.is_whole)
