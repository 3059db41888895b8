"""Whatever dies or lies: a reader waits, or gets an error, and never sees a wrong byte."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fixtures.delivery import Made, Node, Source, running_node, running_source
from zeropull.layers.layout import DATA_FILE

READER = Path(__file__).with_name("reader.py")
SLOW = 3_000_000.0  # bytes a second: a layer takes seconds


def start_readers(made: Made, points: list[Path], way: str = "read") -> subprocess.Popen[str]:
    files = [str(points[layer] / name) for layer, name in made.digests]
    return subprocess.Popen(
        [sys.executable, str(READER), way, *files], stdout=subprocess.PIPE, text=True
    )


def finished(reader: subprocess.Popen[str], made: Made, timeout_s: float = 90.0) -> None:
    said, _ = reader.communicate(timeout=timeout_s)
    assert reader.returncode == 0
    assert said.split() == list(made.digests.values())


def slow_source(source: Source) -> None:
    source.stop()
    source.egress_bytes_per_s = SLOW
    source.start()


@pytest.mark.parametrize("way", ["read", "mmap"])
def test_readers_of_a_killed_receiver_wait_for_its_successor(way: str) -> None:
    with running_source() as source:
        slow_source(source)
        with running_node(source.address("i-1")) as node:
            made = source.make()
            node.client.attach(made.generation.number, made.generation.index_digest)
            reader = start_readers(made, node.mount(made), way)
            for _ in range(3):
                time.sleep(0.7)
                node.kill_receiver()
                time.sleep(0.3)
                assert reader.poll() is None, "nobody is let go while the receiver is away"
                node.start_receiver()
            source.stop()
            source.egress_bytes_per_s = None
            source.start()
            finished(reader, made)


def test_a_killed_holder_is_replaced_and_has_the_events_again() -> None:
    with running_source() as source:
        slow_source(source)
        with running_node(source.address("i-1")) as node:
            made = source.make()
            node.client.attach(made.generation.number, made.generation.index_digest)
            reader = start_readers(made, node.mount(made))
            time.sleep(0.5)
            assert node.holder is not None
            node.holder.kill()
            node.holder.wait()
            node.start_holder()
            time.sleep(2.5)  # the receiver hands the group over within a second
            node.kill_receiver()
            time.sleep(0.5)
            assert reader.poll() is None
            node.start_receiver()
            source.stop()
            source.egress_bytes_per_s = None
            source.start()
            finished(reader, made)


def test_on_fuse_readers_of_a_killed_receiver_get_an_error_and_never_zeros() -> None:
    with running_source() as source:
        slow_source(source)
        with running_node(source.address("i-1"), "fuse") as node:
            made = source.make()
            node.client.attach(made.generation.number, made.generation.index_digest)
            points = node.mount(made)
            reader = start_readers(made, points)
            time.sleep(1.0)
            node.kill_receiver()
            said, _ = reader.communicate(timeout=30.0)
            assert reader.returncode != 0
            assert said.split() == list(made.digests.values())[: len(said.split())]
            source.stop()
            source.egress_bytes_per_s = None
            source.start()
            node.start_receiver()
            state = node.client.state()
            assert set(state.broken) == set(made.image.chain_ids)
            finished(start_readers(made, node.mount(made)), made)


def test_a_stopped_receiver_delays_its_readers_only() -> None:
    with running_source() as source, running_node(source.address("i-1")) as node:
        made = source.make()
        node.client.attach(made.generation.number, made.generation.index_digest)
        points = node.mount(made)
        assert node.receiver is not None
        os.kill(node.receiver.pid, signal.SIGSTOP)
        reader = start_readers(made, points)
        time.sleep(3.0)
        assert reader.poll() is None
        os.kill(node.receiver.pid, signal.SIGCONT)
        finished(reader, made)


def test_wrong_bytes_are_never_served_and_reported() -> None:
    """One block of the source is damaged: readers of it get an error, all others their bytes."""
    with running_source() as source, running_node(source.address("i-1")) as node:
        made = source.make()
        data = source.store.published(source.endpoint, 1).path / "layers"
        path = data / made.image.chain_ids[0][7:] / DATA_FILE
        with path.open("r+b") as file:
            file.seek(700_000)
            file.write(b"\x00damaged\x00")
        node.client.attach(made.generation.number, made.generation.index_digest)
        points = node.mount(made)
        with (points[1] / "file-0").open("rb") as file:
            assert len(file.read()) > 0
        with pytest.raises(OSError, match="Input/output error"):
            (points[0] / "file-0").read_bytes()
        state = node.client.state()
        assert state.failed_faults > 0
        assert any("wrong bytes" in report for report in state.reports)


def test_a_source_that_is_away_is_waited_for() -> None:
    with running_source() as source, running_node(source.address("i-1")) as node:
        made = source.make()
        node.client.attach(made.generation.number, made.generation.index_digest)
        points = node.mount(made)
        source.stop()
        reader = start_readers(made, points)
        time.sleep(2.0)
        assert reader.poll() is None
        source.start()
        finished(reader, made)


def test_what_is_on_the_disk_is_never_fetched_twice(tmp_path: Path) -> None:
    with running_source() as source, running_node(source.address("i-1")) as node:
        made = source.make()
        node.client.attach(made.generation.number, made.generation.index_digest)
        points = node.mount(made)
        (points[0] / "file-1").read_bytes()
        (points[0] / "file-2").read_bytes()
        here = node.client.state().generations[0].blocks_here
        node.kill_receiver()
        node.start_receiver()
        source.stop()
        assert node.client.state().generations[0].blocks_here == here
        (points[0] / "file-1").read_bytes()


@pytest.mark.slow
def test_200_random_kills_and_no_wrong_byte() -> None:
    chance = random.Random(7)
    with running_source() as source:
        slow_source(source)
        for round_number in range(20):
            with running_node(source.address(f"i-{round_number}")) as node:
                made = source.make(seed=round_number)
                node.client.attach(made.generation.number, made.generation.index_digest)
                reader = start_readers(made, node.mount(made), chance.choice(["read", "mmap"]))
                for _ in range(10):
                    time.sleep(chance.random() * 0.5)
                    _kill_one(chance, source, node)
                source.stop()
                source.egress_bytes_per_s = None
                source.start()
                finished(reader, made, 180.0)


def _kill_one(chance: random.Random, source: Source, node: Node) -> None:
    match chance.choice(["receiver", "receiver", "holder", "source"]):
        case "receiver":
            node.kill_receiver()
            node.start_receiver()
        case "holder":
            assert node.holder is not None
            node.holder.kill()
            node.holder.wait()
            node.start_holder()
            time.sleep(1.2)
        case "source":
            source.stop()
            source.start()
