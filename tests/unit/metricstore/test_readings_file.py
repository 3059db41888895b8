"""Readings that are damaged, or have no room, stop nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from zeropull.errors import Unavailable
from zeropull.metricstore.store import MetricKey, MetricStore

KEY = MetricKey.of("1", "own", "errors", {})


def filled(path: Path) -> None:
    store = MetricStore(path)
    for number in range(400):
        store.observe(MetricKey.of("1", "own", f"metric-{number}", {}), 100, 1.0)
    store.observe(KEY, 100, 2.0)
    store.close()


@pytest.mark.parametrize("damage", ["garbage", "short", "pages", "empty"])
def test_damaged_readings_are_moved_aside_and_begin_anew(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "metrics.db"
    filled(path)
    data = path.read_bytes()
    path.write_bytes(
        {
            "garbage": b"garbage " * 2000,
            "short": data[:3000],
            "pages": data[:4096] + b"\xa5" * (len(data) - 4096),
            "empty": b"",
        }[damage]
    )
    store = MetricStore(path)
    store.observe(KEY, 160, 4.0)
    assert [point.total for point in store.read(KEY, 0, 240, 60).values()] == [4.0]
    store.close()
    assert bool(list(tmp_path.glob("metrics.db.damaged-*"))) == (damage != "empty")
    again = MetricStore(path)
    assert len(again.read(KEY, 0, 240, 60)) == 1
    again.close()


def test_damage_that_is_found_later_is_told_once_and_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.db"
    filled(path)
    store = MetricStore(path)
    store._file.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(path.read_bytes())
    # All pages of points; the names of the series stay as they are.
    page = store._file.db.execute(
        "SELECT rootpage FROM sqlite_master WHERE name = 'points'"
    ).fetchone()[0]
    data[(page - 1) * 4096 : page * 4096] = b"\xa5" * 4096
    with path.open("r+b") as file:
        file.write(data)
    with pytest.raises(Unavailable):
        for _ in range(2):
            store.read(KEY, 0, 240, 60)
            store.observe(KEY, 160, 4.0)
            store.flush()
    store.observe(KEY, 160, 4.0)
    assert [point.total for point in store.read(KEY, 0, 240, 60).values()] == [4.0]
    store.close()


def test_a_file_that_cannot_be_made_leaves_readings_in_memory(tmp_path: Path) -> None:
    store = MetricStore(tmp_path / "nowhere" / "metrics.db")
    store.observe(KEY, 100, 2.0)
    store.flush()
    assert store.read(KEY, 0, 120, 60)[60].total == 2.0
    assert store.keys("1", now_s=200) == [KEY]
    store.close()


def test_without_room_readings_wait_in_memory_and_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.db"
    filled(path)
    store = MetricStore(path)
    db = store._file.db
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own "the disk is full"
    numbers = range(20_000)
    with pytest.raises(Exception, match="disk is full"):
        for number in numbers:
            store.observe(KEY, 1000 + number, 1.0, resolution=1)
            store.flush(only_seconds=True)
    written = store.read(KEY, 0, 30_000, 3600)
    store.observe(KEY, 29_000, 7.0, resolution=1)
    found = store.read(KEY, 0, 30_000, 3600)
    assert sum(p.total for p in found.values()) == sum(p.total for p in written.values()) + 7.0
    db.execute(f"PRAGMA max_page_count = {pages + 10_000}")
    store.flush()
    store.close()
    again = MetricStore(path)
    assert sum(p.total for p in again.read(KEY, 0, 30_000, 3600).values()) == sum(
        p.total for p in found.values()
    )
    again.close()
