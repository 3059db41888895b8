"""The node's disk budget and what is given up for room."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import pytest

from zeropull.errors import DiskFull
from zeropull.nodeagent.disk import NodeDisk, used_below
from zeropull.resources.node import NodeConfig

LAYER_BYTES = 100_000


def config(disk: Path, budget_bytes: int | None) -> NodeConfig:
    return NodeConfig(
        instance_id="i-1", node_token="t", control_socket="c", disk_dir=str(disk), run_dir="r",
        instance_type="t", vcpus=1, memory_bytes=1, subnet="", gateway="", address="",
        cgroup_parent="", disk_bytes=budget_bytes,
    )  # fmt: skip


def add_layer(disk: Path, name: str, used_at_s: float) -> Path:
    layer = disk / "layers" / name
    layer.mkdir(parents=True)
    (layer / "data.erofs").write_bytes(os.urandom(LAYER_BYTES))
    os.utime(layer, (used_at_s, used_at_s))
    return layer


def disk_with(
    folder: Path, budget_bytes: int | None, in_use: Collection[str] = ()
) -> tuple[NodeDisk, list[Path]]:
    forgotten: list[Path] = []

    async def used() -> Collection[str]:
        return in_use

    return NodeDisk(config(folder, budget_bytes), used, forgotten.append), forgotten


async def test_the_layer_that_was_unused_for_longest_goes_first(tmp_path: Path) -> None:
    old, older = add_layer(tmp_path, "b", 200.0), add_layer(tmp_path, "a", 100.0)
    disk, forgotten = disk_with(tmp_path, 350_000)
    await disk.make_room(200_000, "image x")
    assert forgotten == [older]
    assert old.is_dir()
    assert [path.name for path in (tmp_path / "layers").iterdir()] == ["b"]


async def test_layers_in_use_and_half_made_ones_stay_however_old(tmp_path: Path) -> None:
    used = add_layer(tmp_path, "a", 100.0)
    half = add_layer(tmp_path, ".tmp-half", 50.0)
    disk, forgotten = disk_with(tmp_path, 250_000, in_use={"a"})
    with pytest.raises(DiskFull) as raised:
        await disk.make_room(200_000, "image x")
    assert forgotten == []
    assert used.is_dir()
    assert half.is_dir()
    for part in ("image x needs 200,000 bytes", "disk budget is 250,000 bytes", "are free"):
        assert part in str(raised.value)


async def test_a_download_that_outgrows_the_budget_is_noticed_while_it_grows(
    tmp_path: Path,
) -> None:
    add_layer(tmp_path, "a", 100.0)
    disk, _ = disk_with(tmp_path, 300_000)
    watch = await disk.watch("image x")
    assert watch is not None
    watch.check()
    add_layer(tmp_path, ".tmp-new", 100.0)
    watch.check()
    add_layer(tmp_path, ".tmp-newer", 100.0)
    with pytest.raises(DiskFull, match="budget is 300,000 bytes"):
        watch.check()


async def test_without_a_budget_the_disk_itself_decides(tmp_path: Path) -> None:
    layer = add_layer(tmp_path, "a", 100.0)
    disk, _ = disk_with(tmp_path, None)
    await disk.make_room(1 << 20, "image x")
    (tmp_path / "empty" / "layers").mkdir(parents=True)
    with pytest.raises(DiskFull, match=r"image x needs 1,152,921,504,606,846,976 bytes"):
        await disk_with(tmp_path / "empty", None)[0].make_room(1 << 60, "image x")
    assert await disk.watch("image x") is None
    assert layer.is_dir()
    assert 0.0 < await disk.utilization() < 100.0


def test_what_is_used_counts_links_once_and_leaves_volumes_out(tmp_path: Path) -> None:
    layer = add_layer(tmp_path, "a", 100.0)
    before = used_below(tmp_path, tmp_path / "volumes")
    os.link(layer / "data.erofs", layer / "again")
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes" / "big").write_bytes(os.urandom(1 << 20))
    assert before <= used_below(tmp_path, tmp_path / "volumes") < before + 10_000
