"""A layer on its way: blocks are claimed by one, verified, kept over a restart, and waited for."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.fixtures.arriving import made_up_layer
from zeropull.delivery.arriving import MAP_FILE, ArrivingLayer, expect_layer, is_arriving
from zeropull.errors import IntegrityError
from zeropull.layers.layout import BLOCKS_FILE, DATA_FILE


def test_blocks_come_in_any_order_and_then_the_layer_is_an_ordinary_one(tmp_path: Path) -> None:
    made = made_up_layer(3)
    layer = made.expect(tmp_path)
    assert is_arriving(tmp_path) and layer.missing == 3
    for block in (2, 0, 1):
        assert not layer.has(block)
        assert layer.put(block, memoryview(made.contents[block]))
        assert layer.has(block) and layer.read(block) == made.contents[block]
    assert layer.missing == 0
    layer.finish()
    layer.close()
    assert not is_arriving(tmp_path)
    assert (tmp_path / DATA_FILE).read_bytes() == b"".join(made.contents)


@pytest.mark.parametrize("change", ["bit", "short", "other"])
def test_a_wrong_block_is_refused_and_stays_missing(tmp_path: Path, change: str) -> None:
    made = made_up_layer(2)
    layer = made.expect(tmp_path)
    right = made.contents[0]
    wrong = {"bit": bytes([right[0] ^ 1]) + right[1:], "short": right[:-1], "other": bytes(5)}
    assert not layer.put(0, memoryview(wrong[change]))
    assert not layer.has(0)
    layer.close()


def test_a_block_has_one_bringer_until_it_gives_up(tmp_path: Path) -> None:
    made = made_up_layer(3)
    layer = made.expect(tmp_path)
    layer.put(0, memoryview(made.contents[0]))
    assert layer.claim(range(3)) == [1, 2], "the first one is here"
    assert layer.claim(range(3)) == []
    layer.give_up([2])
    assert layer.claim(range(3)) == [2]
    layer.close()


def test_whoever_waits_goes_on_when_the_block_is_here_or_nobody_brings_it(tmp_path: Path) -> None:
    made = made_up_layer(2)
    layer = made.expect(tmp_path)
    assert layer.wait(0, 1, 0.0) is False
    layer.claim([0, 1])
    answers: dict[int, bool] = {}

    def wait(block: int) -> None:
        answers[block] = layer.wait(block, 1, 30.0)

    threads = [threading.Thread(target=wait, args=(block,)) for block in (0, 1)]
    for thread in threads:
        thread.start()
    layer.put(0, memoryview(made.contents[0]))
    layer.give_up([1])
    for thread in threads:
        thread.join(30.0)
    assert answers == {0: True, 1: False}
    layer.close()


def test_what_is_here_is_known_to_the_next_process(tmp_path: Path) -> None:
    made = made_up_layer(3)
    first = made.expect(tmp_path)
    first.put(1, memoryview(made.contents[1]))
    first.close()
    expect_layer(tmp_path, made.index)  # again, as after a kill
    again = ArrivingLayer(tmp_path)
    assert [again.has(block) for block in range(3)] == [False, True, False]
    again.close()


def test_after_a_reboot_blocks_that_the_crash_lost_are_missing_again(tmp_path: Path) -> None:
    made = made_up_layer(3)
    first = made.expect(tmp_path)
    for block in (0, 1):
        first.put(block, memoryview(made.contents[block]))
    first.close()
    of_another_boot = bytearray((tmp_path / MAP_FILE).read_bytes())
    of_another_boot[0] ^= 1
    (tmp_path / MAP_FILE).write_bytes(of_another_boot)
    with (tmp_path / DATA_FILE).open("r+b") as data:
        data.write(bytes(4096))  # the first block's pages never reached the disk
    again = ArrivingLayer(tmp_path)
    assert [again.has(block) for block in range(3)] == [False, True, False]
    again.close()


def test_a_layer_without_data_is_whole_at_once(tmp_path: Path) -> None:
    made = made_up_layer(1)
    made.write(tmp_path)
    layer = ArrivingLayer(tmp_path)
    assert layer.missing == 0 and layer.has(0) and layer.claim([0]) == []
    layer.close()


def test_digests_that_do_not_fit_the_index_are_refused(tmp_path: Path) -> None:
    made = made_up_layer(2)
    made.write(tmp_path)
    (tmp_path / BLOCKS_FILE).write_bytes(made.digests[:-1])
    with pytest.raises(IntegrityError, match="has 63 bytes"):
        ArrivingLayer(tmp_path)
