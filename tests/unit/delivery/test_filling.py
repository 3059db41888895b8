"""Blocks are brought once, from whoever has them, and no reader waits for what nobody has."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.fixtures.arriving import MadeUpLayer, made_up_layer
from zeropull.delivery.arriving import ArrivingLayer
from zeropull.delivery.filling import MAX_LIES, Cause, Filler, Wanted, runs_of
from zeropull.delivery.suppliers import Supplier, SupplierAddress, Suppliers
from zeropull.delivery.wire import BlockRun
from zeropull.errors import Unavailable

ADDRESS = SupplierAddress("198.18.0.1", 1, "0" * 64, "token", is_source=True)


class MemorySupplier(Supplier):
    """Has the blocks of one layer in memory. `change` is what it makes of each."""

    def __init__(
        self, made: MadeUpLayer, name: str, change: Callable[[bytes], bytes] = lambda right: right
    ) -> None:
        super().__init__(SupplierAddress(name, 1, "0" * 64, "token"))
        self.made = made
        self.change = change
        self.asked: list[tuple[int, ...]] = []

    def blocks(
        self, generation: int, runs: Sequence[BlockRun], sizes: Iterable[int]
    ) -> Iterator[memoryview]:
        wanted = [block for run in runs for block in range(run.first, run.first + run.count)]
        self.asked.append(tuple(wanted))
        for block in wanted:
            yield memoryview(self.change(self.made.contents[block]))


class Refusing(MemorySupplier):
    def blocks(
        self, generation: int, runs: Sequence[BlockRun], sizes: Iterable[int]
    ) -> Iterator[memoryview]:
        self.asked.append(())
        raise Unavailable(f"{self.address.name} is away")


class InOrder(Suppliers):
    """Those that it is given, in their order, however they behave."""

    def __init__(self, *suppliers: Supplier) -> None:
        super().__init__(ADDRESS)
        self.suppliers = list(suppliers)

    def everybody(self) -> list[Supplier]:
        return self.suppliers


@pytest.fixture
def made() -> MadeUpLayer:
    return made_up_layer(12)


@pytest.fixture
def layer(made: MadeUpLayer, tmp_path: Path) -> Iterator[ArrivingLayer]:
    found = made.expect(tmp_path)
    yield found
    found.close()


def wanted(layer: ArrivingLayer, *blocks: int) -> list[Wanted]:
    return [Wanted(layer, block) for block in blocks]


def needed(filler: Filler, layer: ArrivingLayer, first: int, count: int) -> bool:
    """What a reader is told."""
    told, answers = threading.Event(), []

    def done(is_here: bool) -> None:
        answers.append(is_here)
        told.set()

    filler.need(layer, first, count, done)
    assert told.wait(30.0)
    assert len(answers) == 1
    return answers[0]


def test_a_stream_brings_what_is_missing_in_its_order(
    made: MadeUpLayer, layer: ArrivingLayer
) -> None:
    layer.put(3, memoryview(made.contents[3]))
    supplier = MemorySupplier(made, "one")
    filler = Filler(InOrder(supplier), lambda _: 1)
    filler.stream(wanted(layer, 7, 3, 0, 1), Cause.PROFILE)
    assert supplier.asked == [(7, 0, 1)]
    assert [block for block in range(12) if layer.has(block)] == [0, 1, 3, 7]
    assert filler.bytes == {Cause.PROFILE: sum(len(made.contents[block]) for block in (7, 0, 1))}
    filler.close()


def test_the_next_supplier_brings_what_one_does_not(
    made: MadeUpLayer, layer: ArrivingLayer
) -> None:
    away, liar = Refusing(made, "away"), MemorySupplier(made, "liar", lambda right: right[::-1])
    honest = MemorySupplier(made, "honest")
    filler = Filler(InOrder(away, liar, honest), lambda _: 1)
    filler.stream(wanted(layer, *range(12)), Cause.REST)
    assert layer.missing == 0
    assert (away.failures, liar.failures, honest.failures) == (1, 1, 0)
    assert "sent wrong bytes for block 0" in liar.last_failure
    filler.close()


def test_a_stream_says_when_nobody_has_it(made: MadeUpLayer, layer: ArrivingLayer) -> None:
    filler = Filler(InOrder(Refusing(made, "away")), lambda _: 1)
    with pytest.raises(Unavailable, match="away"):
        filler.stream(wanted(layer, 0), Cause.REST)
    assert layer.claim([0]) == [0], "nobody has claimed it any more"
    filler.close()


def test_a_layer_of_no_generation_is_not_asked_for(made: MadeUpLayer, layer: ArrivingLayer) -> None:
    supplier = MemorySupplier(made, "one")
    filler = Filler(InOrder(supplier), lambda _: None)
    with pytest.raises(Unavailable, match="belongs to no generation"):
        filler.stream(wanted(layer, 0), Cause.REST)
    assert supplier.asked == []
    filler.close()


def test_a_reader_gets_its_blocks_and_one_that_goes_on_those_behind_them(
    made: MadeUpLayer, layer: ArrivingLayer
) -> None:
    supplier = MemorySupplier(made, "one")
    filler = Filler(InOrder(supplier), lambda _: 1)
    assert needed(filler, layer, 2, 1)
    assert needed(filler, layer, 3, 1)
    assert supplier.asked == [(2,), tuple(range(3, 12))]
    assert needed(filler, layer, 2, 2), "they are here: nobody is asked"
    assert needed(filler, layer, 12, 5), "behind the end there is nothing to wait for"
    assert len(supplier.asked) == 2
    filler.close()


def test_a_reader_waits_for_what_a_stream_brings_already(
    made: MadeUpLayer, layer: ArrivingLayer
) -> None:
    supplier = MemorySupplier(made, "one")
    filler = Filler(InOrder(supplier), lambda _: 1)
    layer.claim([5])
    told = threading.Event()
    filler.need(layer, 5, 1, lambda is_here: told.set())
    layer.put(5, memoryview(made.contents[5]))
    assert told.wait(30.0)
    assert supplier.asked == []
    filler.close()


def test_a_reader_gets_an_error_when_everybody_lies(
    made: MadeUpLayer, layer: ArrivingLayer
) -> None:
    liar = MemorySupplier(made, "liar", lambda right: bytes(len(right)))
    filler = Filler(InOrder(liar), lambda _: 1)
    assert not needed(filler, layer, 0, 1)
    assert len(liar.asked) == MAX_LIES
    assert filler.failed_faults == 1 and "wrong bytes" in filler.last_failure
    assert not layer.has(0)
    filler.close()


def test_neighbours_in_a_row_are_one_run(layer: ArrivingLayer) -> None:
    chain_id = layer.index.chain_id
    assert runs_of(wanted(layer, 4, 5, 6, 1, 3, 2)) == [
        BlockRun(chain_id, 4, 3),
        BlockRun(chain_id, 1, 1),
        BlockRun(chain_id, 3, 1),
        BlockRun(chain_id, 2, 1),
    ]
