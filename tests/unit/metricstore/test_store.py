"""Readings come back as they went in, survive a restart and grow coarser with age."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from zeropull.errors import ConfigurationError, NoCapacity
from zeropull.metricstore.points import Point
from zeropull.metricstore.store import MetricKey, MetricStore

KEY = MetricKey.of("1", "AWS/SageMaker", "ModelLatency", {"VariantName": "v", "EndpointName": "e"})


def test_points_of_one_period_are_merged(tmp_path: Path) -> None:
    store = MetricStore(tmp_path / "m.db")
    for second, value in ((100, 2.0), (104, 5.0), (111, 9.0)):
        store.observe(KEY, second, value, resolution=1)
    points = store.read(KEY, 100, 120, 10)
    assert {start: point.statistic("Maximum") for start, point in points.items()} == {
        100: 5.0,
        110: 9.0,
    }
    assert points[100].statistic("Average") == 3.5
    assert store.read(KEY, 0, 120, 60)[60].statistic("SampleCount") == 3


def test_readings_survive_a_restart(tmp_path: Path) -> None:
    store = MetricStore(tmp_path / "m.db")
    store.observe(KEY, 100, 2.0)
    store.close()
    again = MetricStore(tmp_path / "m.db")
    again.observe(KEY, 101, 4.0)
    assert again.read(KEY, 60, 120, 60)[60].statistic("Sum") == 6.0


def test_nobody_else_can_read_the_files(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    path.touch(mode=0o644)
    path.chmod(0o644)
    store = MetricStore(path)
    store.observe(KEY, 100, 2.0)
    store.flush()
    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("m.db", "m.db-wal", "m.db-shm"), 0o600)
    store.close()


def test_percentiles_are_within_one_percent(tmp_path: Path) -> None:
    store = MetricStore(tmp_path / "m.db")
    rng = random.Random(7)
    values = sorted(rng.lognormvariate(8, 1.5) for _ in range(5000))
    for part in range(10):
        point = Point()
        for value in values[part::10]:
            point.add(value, with_sketch=True)
        store.add(KEY, 60 + part, point, resolution=1)
        store.flush()
    point = store.read(KEY, 60, 120, 60)[60]
    for percent in (1, 50, 90, 99, 99.9):
        exact = values[int(percent / 100 * (len(values) - 1))]
        assert point.statistic(f"p{percent}") == pytest.approx(exact, rel=0.011)
    assert point.statistic("p100") == values[-1]


def test_a_statistic_set_has_no_percentiles() -> None:
    point = Point(count=3, total=6, least=1, most=3)
    assert point.statistic("p50") is None
    assert Point(count=3, total=6, least=2, most=2).statistic("p50") == 2


def test_old_seconds_become_minutes_and_keep_their_sums(tmp_path: Path) -> None:
    store = MetricStore(tmp_path / "m.db")
    for second in range(120):
        store.observe(KEY, second, 1.0, resolution=1)
    store.roll_up(now_s=5 * 3600)
    assert store.read(KEY, 0, 120, 10) == {}
    assert [point.total for point in store.read(KEY, 0, 120, 60).values()] == [60.0, 60.0]
    store.roll_up(now_s=500 * 86400)
    assert store.read(KEY, 0, 7200, 3600) == {}


def test_metrics_are_found_by_some_of_their_dimensions(tmp_path: Path) -> None:
    store = MetricStore(tmp_path / "m.db")
    store.observe(KEY, 1000, 1.0)

    def find(
        *dimensions: tuple[str, str | None], account: str = "1", now_s: int = 1000
    ) -> list[MetricKey]:
        return store.keys(account, dimensions=dimensions, now_s=now_s)

    assert find(("EndpointName", None)) == [KEY]
    assert find(("EndpointName", "other")) == []
    assert find(account="2") == []
    assert find(now_s=1000 + 15 * 86400) == []


def test_a_newer_schema_is_refused_by_name(tmp_path: Path) -> None:
    store = MetricStore(tmp_path / "m.db")
    store._file.db.execute("PRAGMA user_version=99")
    store.close()
    with pytest.raises(ConfigurationError, match="schema version 99"):
        MetricStore(tmp_path / "m.db")


def test_short_periods_are_read_again_only_where_they_changed(tmp_path: Path) -> None:
    store = MetricStore(tmp_path / "m.db")

    def maxima(start_s: int, end_s: int) -> dict[int, float | None]:
        points = store.read(KEY, start_s, end_s, 10)
        return {start: point.statistic("Maximum") for start, point in points.items()}

    for second in range(1000, 1060):
        store.observe(KEY, second, float(second), resolution=1)
        if second % 10 == 0:
            store.flush(only_seconds=True)
            assert maxima(1000, second + 1)[second] == second
    assert maxima(1000, 1060) == {start: start + 9.0 for start in range(1000, 1060, 10)}
    store.observe(KEY, 1005, 5000.0, resolution=1)  # late
    assert maxima(1000, 1060)[1000] == 5000.0
    assert list(maxima(1040, 1060)) == [1040, 1050]
    assert list(maxima(1000, 1030)) == [1000, 1010, 1020]  # further back than the last time


def test_minutes_reach_the_disk_with_a_whole_flush_or_when_read(tmp_path: Path) -> None:
    store = MetricStore(tmp_path / "m.db")
    other = MetricStore(tmp_path / "m.db")
    store.observe(KEY, 100, 2.0)
    store.flush(only_seconds=True)
    assert rows(other) == 0
    assert store.read(KEY, 60, 120, 60)[60].statistic("Sum") == 2.0
    assert rows(other) == 1
    store.observe(KEY, 101, 3.0)
    store.flush()
    store.observe(KEY, 102, 4.0)
    store.close()
    assert MetricStore(tmp_path / "m.db").read(KEY, 60, 120, 60)[60].statistic("Sum") == 9.0


def test_the_file_stops_growing_when_its_oldest_points_grow_coarse(tmp_path: Path) -> None:
    store = MetricStore(tmp_path / "m.db")
    hours = 30
    for start in range(0, hours * 3600, 20):
        store.observe(KEY, start, 1.0, resolution=1)
        if start % 3600 == 0:
            store.roll_up(start)
    store.roll_up(hours * 3600)
    seconds = store._file.db.execute("SELECT count(*) FROM points WHERE resolution = 1").fetchone()[
        0
    ]
    assert seconds <= 4 * 3600 / 20
    assert store.read(KEY, 0, 3600, 3600)[0].statistic("SampleCount") == 180


def rows(store: MetricStore) -> int:
    return int(store._file.db.execute("SELECT count(*) FROM points").fetchone()[0])


def test_an_account_has_a_bounded_number_of_own_metrics(tmp_path: Path) -> None:
    store = MetricStore(tmp_path / "m.db", max_per_account=3)

    def put(account: str, *names: str, namespace: str = "own") -> None:
        store.add_all(
            [(MetricKey.of(account, namespace, n, {}), 100.0, Point(1, 1, 1, 1), 60) for n in names]
        )

    put("1", "a", "b")
    put("1", "a", "b", "c")
    put("2", "a", "b", "c")
    for number in range(10):
        put("1", f"m{number}", namespace="AWS/SageMaker")  # bounded by the endpoints
    with pytest.raises(NoCapacity, match=r"has 3 custom metrics.*limit of 3"):
        put("1", "a", "d")
    assert [key.name for key in store.keys("1", namespace="own", now_s=200)] == ["a", "b", "c"]
    store.close()
    again = MetricStore(tmp_path / "m.db", max_per_account=3)
    with pytest.raises(NoCapacity):
        again.add_all([(MetricKey.of("1", "own", "e", {}), 100.0, Point(1, 1, 1, 1), 60)])
    again.close()


def test_a_metric_without_points_for_fifteen_months_makes_room(tmp_path: Path) -> None:
    store = MetricStore(tmp_path / "m.db", max_per_account=1)
    store.add_all([(MetricKey.of("1", "own", "old", {}), 100.0, Point(1, 1, 1, 1), 60)])
    now_s = 500 * 86400
    store.roll_up(now_s)
    store.roll_up(now_s)
    store.add_all([(MetricKey.of("1", "own", "new", {}), now_s, Point(1, 1, 1, 1), 60)])
    store.close()


def test_a_flood_in_a_thread_leaves_the_others_their_turn(tmp_path: Path) -> None:
    """What the loop asks for meanwhile is answered within its own time, not the flood's."""
    store = MetricStore(tmp_path / "m.db")
    keys = [MetricKey.of("1", "own", f"m{number}", {}) for number in range(4_000)]
    points = [(key, 100.0, Point(1, 1, 1, 1), 60) for key in keys]
    flood = threading.Thread(target=store.add_all, args=(points,))
    turns = 0
    flood.start()
    while flood.is_alive():
        store.observe(KEY, 100, 1.0)
        turns += 1
    flood.join()
    assert turns > 10  # of twenty pieces of the flood
    assert store.read(KEY, 60, 120, 60)[60].total == turns
    assert len(store.keys("1", now_s=200)) == len(keys) + 1
    store.close()
