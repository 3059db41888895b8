"""Layers whose data is elsewhere: readers wait for the right bytes, and for nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.fixtures.delivery import running_node, running_source


def digests(points: list[Path]) -> dict[tuple[int, str], str]:
    return {
        (number, path.name): hashlib.sha256(path.read_bytes()).hexdigest()
        for number, point in enumerate(points)
        for path in sorted(point.iterdir())
    }


@pytest.mark.parametrize("rung", ["fanotify", "fuse"])
def test_a_mounted_layer_is_read_before_its_data_has_come(rung: str) -> None:
    with running_source() as source, running_node(source.address("i-1"), rung) as node:
        made = source.make()
        path = node.client.attach(made.generation.number, made.generation.index_digest)
        assert path == node.folder / "volumes/1"
        before = node.client.state().generations[0]
        assert (before.layers, before.whole_layers, before.blocks_here) == (2, 0, 0)
        points = node.mount(made)
        with (points[1] / "file-2").open("rb") as file:
            file.seek(1_000_000)
            assert file.read(10)
        some = node.client.state()
        assert 0 < some.generations[0].blocks_here < some.generations[0].blocks
        assert digests(points) == made.digests
        state = node.client.state()
        assert state.rung == rung
        assert (state.faults > 0, state.failed_faults) == (True, 0)
        assert state.bytes["demand"] > 0


@pytest.mark.parametrize("rung", ["fanotify", "fuse", "whole"])
def test_the_rest_comes_when_it_may_and_leaves_an_ordinary_layer(rung: str) -> None:
    with running_source() as source, running_node(source.address("i-1"), rung) as node:
        made = source.make()
        path = node.client.attach(made.generation.number, made.generation.index_digest)
        node.client.bring_rest()
        node.until(node.is_whole)
        source.stop()
        assert digests(node.mount(made)) == made.digests
        state = node.client.state()
        assert state.faults == 0
        layer = (path / "layers" / made.image.chain_ids[0][7:]).resolve()
        assert sorted(each.name for each in layer.iterdir()) == [
            "blocks.blake3",
            "data.erofs",
            "layer.json",
            "meta.erofs",
        ]
