"""How image and model share a node's link: the decision, and the turns that models get."""

from __future__ import annotations

import asyncio

import pytest

from zeropull.nodeagent.link_share import (
    ImageUse,
    LinkShare,
    Progress,
    SharedBytes,
    is_ahead,
    model_connections,
)


@pytest.mark.parametrize(
    ("share", "image", "expected"),
    [
        (0.2, ImageUse(0, 0), 8),  # no image: all of the link
        (0.2, ImageUse(8, 8), 2),  # 2 of 10
        (0.2, ImageUse(16, 16), 4),
        (0.5, ImageUse(8, 8), 8),
        (0.05, ImageUse(8, 8), 1),  # never none
        (0.2, ImageUse(3, 3), 1),
        (0.2, ImageUse(8, 5), 5),  # three of the image's wait for the processor
        (0.2, ImageUse(8, 0), 8),
    ],
)
def test_a_model_gets_its_share_of_connections_and_what_the_image_leaves(
    share: float, image: ImageUse, expected: int
) -> None:
    assert model_connections(share, image) == expected


@pytest.mark.parametrize(
    ("model", "image", "expected"),
    [
        (Progress(0, 100), Progress(0, 1000), True),
        (Progress(4, 100), Progress(100, 1000), False),
        (Progress(6, 100), Progress(100, 1000), True),
        (Progress(16, 100), Progress(), False),  # no image, or one of unknown size
        (Progress(16, 0), Progress(0, 1000), False),
    ],
)
def test_a_model_is_ahead_of_the_image_by_its_share_of_bytes(
    model: Progress, image: Progress, expected: bool
) -> None:
    assert is_ahead(model, image) is expected


async def test_a_model_that_is_ahead_waits_for_the_image() -> None:
    link, order, end = LinkShare(0.5), list[int](), asyncio.Event()
    link.image_uses(8, 8)
    tasks = []
    with link.model_arrives() as expect:
        expect(100)
        link.model_bytes(20)
        with link.image_arrives(1000):
            link.image_bytes(100)
            tasks.append(asyncio.create_task(in_turn(link, order, 0, end)))
            await settled()
            assert order == []
            link.image_bytes(200)
            link.image_uses(0, -1)
            await settled()
            assert order == [0]
            link.model_bytes(20)
            tasks.append(asyncio.create_task(in_turn(link, order, 1, end)))
            await settled()
            assert order == [0]
        await settled()
        assert order == [0, 1]  # the image is here
    end.set()
    await asyncio.gather(*tasks)


async def test_an_image_that_does_not_move_holds_no_model_for_long() -> None:
    link, order, end = LinkShare(0.5, hold_s=0.01), list[int](), asyncio.Event()
    link.image_uses(8, 8)
    with link.model_arrives() as expect, link.image_arrives(1000):
        expect(100)
        link.model_bytes(20)
        link.image_bytes(100)
        waiting = asyncio.create_task(in_turn(link, order, 0, end))
        async with asyncio.timeout(20):
            while not order:  # noqa: ASYNC110 - another task fills it
                await asyncio.sleep(0.005)
    end.set()
    await waiting


async def in_turn(link: LinkShare, order: list[int], number: int, end: asyncio.Event) -> None:
    async with link.turn():
        order.append(number)
        await end.wait()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_turns_are_given_in_order_and_no_more_than_the_share() -> None:
    link, order, end = LinkShare(0.2), list[int](), asyncio.Event()
    link.image_uses(8, 8)
    tasks = [asyncio.create_task(in_turn(link, order, n, end)) for n in range(6)]
    await settled()
    assert order == [0, 1]
    await asyncio.to_thread(link.image_uses, 0, -2)  # as the image's threads do
    await settled()
    assert order == [0, 1, 2, 3]
    await asyncio.to_thread(link.image_uses, -8, -6)
    await settled()
    assert order == [0, 1, 2, 3, 4, 5]
    end.set()
    await asyncio.gather(*tasks)


async def test_who_is_cancelled_waiting_or_reading_leaves_its_turn_to_others() -> None:
    link, order, end = LinkShare(0.2), list[int](), asyncio.Event()
    link.image_uses(4, 4)  # one connection for models
    tasks = [asyncio.create_task(in_turn(link, order, n, end)) for n in range(4)]
    await settled()
    tasks[1].cancel()
    tasks[0].cancel()
    await settled()
    assert order == [0, 2]
    end.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [0, 2, 3]


async def test_it_is_told_which_share_the_model_had_beside_the_image() -> None:
    link = LinkShare(0.2)
    before = link.shared
    link.model_bytes(100)  # no image yet
    link.image_bytes(100)  # no model
    assert link.told(before) == ""
    link.image_uses(8, 8)
    async with link.turn():
        link.image_bytes(780)
        link.model_bytes(220)
    link.image_bytes(5000)  # the model is there
    assert link.shared == SharedBytes(780, 220)
    assert link.told(before) == "22 % of the link while the image arrived (20 % chosen)"
    assert link.told(link.shared) == ""


async def test_a_pull_by_containerd_counts_as_an_image() -> None:
    link = LinkShare(0.5)
    with link.containerd_pulls():
        async with link.turn(), link.turn(), link.turn():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01), link.turn():
                    pass
    async with link.turn(), link.turn(), link.turn(), link.turn():
        pass


async def test_no_share_is_told_beside_a_pull_whose_bytes_nobody_counts() -> None:
    link = LinkShare(0.2)
    before = link.shared
    with link.containerd_pulls():
        link.model_bytes(500)
    assert link.told(before) == ""
