"""The journal of waiting readers: a successor keeps their numbers free of anything else."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from zeropull.delivery.gate import reserve_numbers

SLOT = struct.Struct("=QQQ")  # inode, offset, count
WAITING = (613, 617)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Path]:
    """Two readers wait; the last slot was cut short by a crash of the machine."""
    content = bytearray(SLOT.size * 700)
    for number in WAITING:
        SLOT.pack_into(content, number * SLOT.size, 42, 4096, 8192)
    path = tmp_path / "journal"
    path.write_bytes(content + b"\1" * 5)
    yield path
    for number in WAITING:
        os.close(number)


def test_numbers_of_waiting_readers_are_occupied_and_not_inherited(journal: Path) -> None:
    reserve_numbers(journal)
    for number in WAITING:
        assert Path(f"/proc/self/fd/{number}").readlink() == Path(os.devnull)
        assert not os.get_inheritable(number)
    assert not Path("/proc/self/fd/614").exists()


def open_numbers() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_without_a_journal_nothing_is_occupied(tmp_path: Path) -> None:
    before = open_numbers()
    reserve_numbers(tmp_path / "nothing")
    assert open_numbers() == before
