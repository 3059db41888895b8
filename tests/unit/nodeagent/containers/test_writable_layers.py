"""Who is ended when the disk gets full."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from zeropull.nodeagent.containers.writable_layers import (
    DiskState,
    WritableLayers,
    disk_state,
    plan_ends,
)

GIB = 1 << 30
ROOM = DiskState(free_bytes=100 * GIB, reserve_bytes=2 * GIB)
LOW = DiskState(free_bytes=GIB, reserve_bytes=2 * GIB)


def test_a_copy_over_its_limit_is_ended_and_told_the_setting() -> None:
    ends = plan_ends({"a": 11, "b": 10}, {}, ROOM, limit_bytes=10)
    assert ends.keys() == {"a"}
    assert "fleet.copy_disk_bytes" in ends["a"]


def test_without_a_limit_nobody_is_ended_while_there_is_room() -> None:
    assert plan_ends({"a": 50 * GIB}, {"a": 0}, ROOM, limit_bytes=None) == {}


def test_on_a_full_disk_only_the_copy_that_grows_is_ended() -> None:
    used = {"filler": 5 * GIB, "large": 9 * GIB, "small": 100 << 20}
    before = {"filler": 4 * GIB, "large": 9 * GIB, "small": 0}
    ends = plan_ends(used, before, LOW, limit_bytes=None)
    assert ends.keys() == {"filler"}
    assert f"{5 * GIB:,} bytes" in ends["filler"]
    assert f"{GIB:,} are free" in ends["filler"]


def test_the_reserve_of_a_small_disk_is_small(tmp_path: Path) -> None:
    assert 0 < disk_state(tmp_path, 1 << 60).reserve_bytes < 1 << 50


@pytest.mark.parametrize(("limit", "ended"), [(1 << 20, ["a"]), (1 << 30, [])])
async def test_a_look_measures_what_is_really_there(
    tmp_path: Path, limit: int, ended: list[str]
) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "file").write_bytes(b"x" * (2 << 20))

    async def layers() -> Mapping[str, Path]:
        return {"a": tmp_path, "gone": tmp_path / "gone"}

    found: list[str] = []
    watch = WritableLayers(tmp_path, limit, 0, layers, lambda copy_id, _: found.append(copy_id))
    await watch.look_once()
    assert found == ended
