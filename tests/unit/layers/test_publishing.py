"""Layers are published in the image's order, however they are made."""

from __future__ import annotations

import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.fixtures.layers import image_of, member, tar_of
from zeropull.erofs.tar_layer import LayerLimits
from zeropull.errors import IntegrityError
from zeropull.layers.layout import LAYER_FILE, layer_directory
from zeropull.layers.maker_pool import PooledMaker
from zeropull.layers.making import LayerJob, LayerMaker, MadeLayer
from zeropull.layers.publishing import LayerPublisher, WaitingLayer

T = TypeVar("T")
IMAGE, BLOBS = image_of(
    [
        tar_of(member("usr", tarfile.DIRTYPE), member("usr/low", data=b"low")),
        tar_of(member("etc", tarfile.DIRTYPE), member("etc/middle", data=b"middle")),
        tar_of(member("link", tarfile.LNKTYPE, linkname="usr/low")),  # finished after the lowest
    ]
)


async def at_once(work: Callable[[], T], /) -> T:
    return work()


class World:
    """A layer store, a maker, and what has been published in it."""

    def __init__(self, store: Path, missing: tuple[int, ...] = (0, 1, 2)) -> None:
        self.store = store
        self.published: list[str] = []
        self.maker = PooledMaker(LayerMaker(threading.Event()))
        self.publisher = LayerPublisher(
            IMAGE.chain_ids, missing, store, lambda _: None, at_once, self._note
        )

    def _note(self, made: MadeLayer) -> None:
        assert made.is_finished
        there = [path.name for path in self.store.iterdir() if not path.name.startswith(".")]
        self.published = [c for c in IMAGE.chain_ids if c[7:] in there]

    def make(self, index: int) -> WaitingLayer:
        directory = self.store / f".tmp-{index}"
        directory.mkdir()
        job = LayerJob(
            directory=str(directory),
            chain_id=IMAGE.chain_ids[index],
            parent_chain_id=IMAGE.chain_ids[index - 1] if index else "",
            diff_id=IMAGE.diff_ids[index],
            blob_digest=IMAGE.layers[index].digest,
            limits=LayerLimits(),
        )
        made = self.maker.maker.make(job, iter([memoryview(BLOBS[index])]))
        return WaitingLayer(job, self.maker, made)

    async def add(self, index: int) -> None:
        await self.publisher.add(index, self.make(index))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_layer_waits_for_those_below_it(world: World) -> None:
    await world.add(2)
    await world.add(1)
    assert world.published == []
    await world.add(0)
    assert world.published == list(IMAGE.chain_ids)
    for chain_id in IMAGE.chain_ids:
        assert (layer_directory(world.store, chain_id) / LAYER_FILE).is_file()


async def test_a_layer_that_is_not_missing_is_not_waited_for(tmp_path: Path) -> None:
    world = World(tmp_path, missing=(1,))
    await world.add(1)
    assert world.published == [IMAGE.chain_ids[1]]


async def test_an_equal_layer_that_is_there_already_stays(world: World) -> None:
    there = layer_directory(world.store, IMAGE.chain_ids[0])
    there.mkdir()
    (there / LAYER_FILE).write_bytes(b"published by another pull")
    await world.add(0)
    assert (there / LAYER_FILE).read_bytes() == b"published by another pull"
    assert not (world.store / ".tmp-0").exists()


async def test_an_unfinished_layer_waits_while_its_maker_makes_another_one(world: World) -> None:
    await world.add(0)
    await world.add(1)
    async with world.maker.lock:
        await world.add(2)
        assert world.published == list(IMAGE.chain_ids[:2])
    await world.publisher.add(2, world.publisher._made[2])
    assert world.published == list(IMAGE.chain_ids)


async def test_a_layer_below_that_went_away_is_told(tmp_path: Path) -> None:
    world = World(tmp_path, missing=(2,))
    with pytest.raises(IntegrityError, match="went away"):
        await world.add(2)
