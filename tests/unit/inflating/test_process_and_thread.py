"""Both ways to inflate a stream: in the thread that iterates, and in a process of its own."""

from __future__ import annotations

import gzip
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from tests.integration.serve.served import wait_until
from zeropull.errors import Unavailable
from zeropull.inflating.in_thread import InflatingInThread
from zeropull.inflating.process import InflatingProcess
from zeropull.inflating.readers import DamagedStream

Inflating = InflatingInThread | InflatingProcess
CONTENT = random.Random(1).randbytes(1_500_001) * 2 + bytes(4_000_000)


@pytest.fixture(params=[InflatingInThread, InflatingProcess])
def kind(request: pytest.FixtureRequest) -> Iterator[type[Inflating]]:
    before = open_descriptors()
    yield request.param
    assert open_descriptors() <= before


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def inflate(kind: type[Inflating], packed: bytes, part_bytes: int = 700_000) -> bytes:
    inflating = kind(packed[:4])

    def put() -> None:
        try:
            for start in range(0, len(packed), part_bytes):
                inflating.put(packed[start : start + part_bytes])
            inflating.end()
        except Unavailable:
            pass  # the other thread has closed it

    thread = threading.Thread(target=put)
    thread.start()
    try:
        return b"".join(bytes(part) for part in inflating.parts())
    finally:
        inflating.kill()
        thread.join()
        inflating.close()


@pytest.mark.parametrize(
    "packed",
    [
        gzip.compress(CONTENT, 1),
        gzip.compress(CONTENT[:1000], 1) + gzip.compress(CONTENT[1000:], 1) + bytes(512),
        zstandard.compress(CONTENT, 1),
        zstandard.compress(CONTENT[:1000], 1) + zstandard.compress(CONTENT[1000:], 1),
    ],
    ids=["gzip", "gzip-members", "zstd", "zstd-frames"],
)
def test_a_stream_comes_back_whole(kind: type[Inflating], packed: bytes) -> None:
    assert inflate(kind, packed) == CONTENT


def test_an_empty_stream_is_empty(kind: type[Inflating]) -> None:
    assert inflate(kind, gzip.compress(b"")) == b""


@pytest.mark.parametrize("where", ["truncated", "flipped", "other", "endless-header", "zstd"])
def test_damage_is_told_as_damage(kind: type[Inflating], where: str) -> None:
    packed = bytearray(gzip.compress(CONTENT, 1))
    if where == "truncated":
        del packed[len(packed) // 2 :]
    elif where == "flipped":
        packed[len(packed) // 2] ^= 0x10
    elif where == "other":
        packed[4:] = b"no gzip after all" * 1000
    elif where == "endless-header":
        packed[3:] = b"\x08" + b"a name " * 500_000
    else:
        packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(CONTENT))
        packed[len(packed) // 2] ^= 0x10
    with pytest.raises(DamagedStream):
        inflate(kind, bytes(packed))


def test_whoever_waits_is_woken_when_it_is_stopped(kind: type[Inflating]) -> None:
    packed = gzip.compress(random.Random(2).randbytes(60_000_000), 0)
    inflating = kind(packed[:4])
    ended: list[str] = []

    def put() -> None:
        try:
            while True:
                inflating.put(packed)
        except Unavailable as error:
            ended.append(error.reason)

    thread = threading.Thread(target=put)
    thread.start()
    time.sleep(0.1)  # it fills what room there is
    assert thread.is_alive()  # nobody takes what it puts
    inflating.kill()
    thread.join(10)
    assert ended == ["inflating was stopped"]
    with pytest.raises(Unavailable, match="stopped"):
        next(inflating.parts())
    inflating.close()


def test_a_killed_process_is_told_and_leaves_nothing() -> None:
    inflating = InflatingProcess(b"\x1f\x8b\x08\0")
    pid = inflating.pid
    os.kill(pid, 9)
    with pytest.raises(Unavailable, match="ended with status -9"):
        next(inflating.parts())
    inflating.close()
    assert not Path(f"/proc/{pid}").exists()


PARENT = """
import time
from zeropull.inflating.process import InflatingProcess
inflating = InflatingProcess(bytes.fromhex("1f8b0800"))
print(inflating.pid, flush=True)
time.sleep(60)  # until it is killed
"""


def test_the_process_ends_when_its_parent_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        worker = Path(f"/proc/{parent.stdout.readline().decode().strip()}")
        assert worker.exists()
        parent.kill()

    def is_gone() -> bool:
        try:
            return (worker / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            return True

    wait_until("it has ended, too", is_gone)
