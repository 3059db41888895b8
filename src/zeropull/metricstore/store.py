"""Readings in a SQLite file of their own, by account, namespace, metric and dimensions.

Points are kept at the resolution at which they came (1 or 60 s) and rolled up with age, as
CloudWatch does: below a minute for 3 hours, minutes for 15 days, 5 minutes for 63 days, hours for
455 days. Concurrent use: one thread only, the control plane's event loop. Rows that are still being
added to are kept in memory and reach the disk with `flush`, which the owner calls about once a
second; a process that is killed loses what came since.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from zeropull.errors import ConfigurationError
from zeropull.metricstore.points import Point, decode_sketch, encode_sketch

SCHEMA_VERSION = 1
RETENTION_S: tuple[tuple[int, int, int], ...] = (
    # resolution, kept for, rolled up into
    (1, 3 * 3600, 60),
    (60, 15 * 86400, 300),
    (300, 63 * 86400, 3600),
    (3600, 455 * 86400, 0),
)
Slot = tuple[int, int, int]
"""Series, resolution and start of a row."""
SHORT_PERIODS_S = (10, 20, 30)
MAX_WINDOWS = 2000
SILENT_AFTER_S = 14 * 86400
"""ListMetrics forgets a metric that has had no datapoint for two weeks."""

_SCHEMA = """
CREATE TABLE series (
  id INTEGER PRIMARY KEY, account TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
  dimensions TEXT NOT NULL, unit TEXT NOT NULL, newest INTEGER NOT NULL DEFAULT 0,
  UNIQUE (account, namespace, name, dimensions, unit)
);
CREATE TABLE points (
  series INTEGER NOT NULL, resolution INTEGER NOT NULL, start INTEGER NOT NULL,
  count REAL NOT NULL, total REAL NOT NULL, least REAL NOT NULL, most REAL NOT NULL, sketch BLOB,
  PRIMARY KEY (series, resolution, start)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class MetricKey:
    """One series. `dimensions` sorted by name; `unit` as CloudWatch spells it ("None")."""

    account: str
    namespace: str
    name: str
    dimensions: tuple[tuple[str, str], ...] = ()
    unit: str = "None"

    @staticmethod
    def of(
        account: str, namespace: str, name: str, dimensions: Mapping[str, str], unit: str = "None"
    ) -> MetricKey:
        return MetricKey(account, namespace, name, tuple(sorted(dimensions.items())), unit)


@dataclass(slots=True)
class _Window:
    """Points of one series from `low` to `final`, to which nothing is added any more.

    `fresh`, up to `fresh_high`, are those after it; None when some came since.
    """

    low: int
    final: int
    span_s: int
    points: dict[int, Point]
    fresh: dict[int, Point] | None = None
    fresh_high: int = 0


class MetricStore:
    """Open, then `add`, `read`, `flush`; `close` flushes."""

    def __init__(self, path: Path, *, check_same_thread: bool = True) -> None:
        """`check_same_thread` False: opened in another thread than the one that uses it."""
        # What endpoints do is nobody else's business; the files beside it get the same mode.
        path.touch(mode=0o600)
        for file in path.parent.glob(f"{path.name}*"):
            file.chmod(0o600)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=check_same_thread)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA_VERSION:
            self._db.close()
            raise ConfigurationError(
                f"{path} has schema version {version}, this zeropull knows {SCHEMA_VERSION}: "
                "start the newer zeropull that wrote it"
            )
        if version == 0:
            self._db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version={SCHEMA_VERSION};COMMIT;")
        self._series: dict[MetricKey, int] = {}
        self._units: dict[tuple[object, ...], list[MetricKey]] = {}
        self._open: dict[Slot, Point] = {}  # whole rows: what is on disk and what came since
        self._dirty: dict[int, set[Slot]] = {}  # by series
        self._windows: dict[tuple[int, int], _Window] = {}
        for row in self._db.execute(
            "SELECT id, account, namespace, name, dimensions, unit FROM series"
        ):
            dimensions = tuple((key, value) for key, value in json.loads(row[4]))
            self._remember(MetricKey(row[1], row[2], row[3], dimensions, row[5]), row[0])

    def close(self) -> None:
        self.flush()
        self._db.close()

    def add(self, key: MetricKey, at_s: float, point: Point, *, resolution: int = 60) -> None:
        """Merge `point` into the period of `resolution` (1 or 60) seconds that holds `at_s`."""
        start = int(at_s // resolution) * resolution
        series = self._series_id(key)
        slot = (series, resolution, start)
        row = self._open.get(slot)
        if row is None:
            row = self._open[slot] = self._row(slot) or Point()
        row.merge(point)
        self._dirty.setdefault(series, set()).add(slot)
        if resolution >= 60:
            return  # no short period holds it
        for period_s in SHORT_PERIODS_S:
            window = self._windows.get((series, period_s))
            if window is None:
                continue
            window.fresh = None
            if start < window.final:
                del self._windows[series, period_s]  # late: it has been read already

    def observe(
        self, key: MetricKey, at_s: float, value: float, *, resolution: int = 60, count: float = 1.0
    ) -> None:
        """`count` observations of `value`, without percentiles."""
        point = Point()
        point.add(value, count)
        self.add(key, at_s, point, resolution=resolution)

    def flush(self, *, only_seconds: bool = False) -> None:
        """Write what is buffered, in one transaction; `only_seconds` leaves the rows of minutes,
        which are added to until their minute has passed, for a later call."""
        dirty = [
            slot
            for slots in self._dirty.values()
            for slot in slots
            if slot[1] < 60 or not only_seconds
        ]
        self._write(dirty)
        if not only_seconds:
            still = set(dirty)
            self._open = {slot: row for slot, row in self._open.items() if slot in still}

    def read(
        self, key: MetricKey, start_s: float, end_s: float, period_s: int, *, phase_s: int = 0
    ) -> dict[int, Point]:
        """Points by period start, for whole periods from the one that holds `start_s` to the one
        before `end_s`. Periods begin `phase_s` after a multiple of their length; those without
        data are absent.

        A period shorter than the resolution at which the data is kept has no points.
        """
        series = self._series.get(key)
        if series is None:
            return {}
        low = int((start_s - phase_s) // period_s) * period_s + phase_s
        high = int(-(-(end_s - phase_s) // period_s)) * period_s + phase_s
        dirty = [s for s in self._dirty.get(series, ()) if s[1] <= period_s and low <= s[2] < high]
        self._write(dirty)
        if period_s not in SHORT_PERIODS_S or phase_s:
            return self._points(series, period_s, low, high)
        return self._recent_points(series, period_s, low, high)

    def units_of(
        self, account: str, namespace: str, name: str, dimensions: Mapping[str, str]
    ) -> list[MetricKey]:
        """The series of one metric: one for every unit in which it came."""
        wanted = tuple(sorted(dimensions.items()))
        return self._units.get((account, namespace, name, wanted), [])

    def keys(
        self,
        account: str,
        *,
        namespace: str | None = None,
        name: str | None = None,
        dimensions: Iterable[tuple[str, str | None]] = (),
        now_s: float,
        active_within_s: float = SILENT_AFTER_S,
    ) -> list[MetricKey]:
        """Series that have at least those dimensions (value None = any), sorted by name."""
        self.flush()
        fresh = {
            int(row[0])
            for row in self._db.execute(
                "SELECT id FROM series WHERE account = ? AND newest >= ?",
                (account, now_s - active_within_s),
            )
        }
        wanted = list(dimensions)
        found = [
            key
            for key, series in self._series.items()
            if series in fresh
            and (namespace is None or key.namespace == namespace)
            and (name is None or key.name == name)
            and all(_has_dimension(key, each) for each in wanted)
        ]
        return sorted(found, key=lambda key: (key.namespace, key.name, key.dimensions, key.unit))

    def roll_up(self, now_s: float) -> None:
        """Merge what is past its retention into the next coarser resolution; forget the rest."""
        self.flush()
        self._open.clear()
        self._windows.clear()
        for resolution, kept_s, coarser in RETENTION_S:
            limit = int((now_s - kept_s) // 3600) * 3600
            rows = self._db.execute(
                "SELECT series, start, count, total, least, most, sketch FROM points "
                "WHERE resolution = ? AND start < ?",
                (resolution, limit),
            ).fetchall()
            if not rows:
                continue
            self._db.execute("BEGIN")
            try:
                if coarser:
                    merged: dict[tuple[int, int], Point] = {}
                    for series, start, *columns in rows:
                        slot = (series, start // coarser * coarser)
                        merged.setdefault(slot, Point()).merge(_point(columns))
                    for (series, start), point in merged.items():
                        self._merge_row((series, coarser, start), point)
                self._db.execute(
                    "DELETE FROM points WHERE resolution = ? AND start < ?", (resolution, limit)
                )
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    def _points(self, series: int, period_s: int, low: int, high: int) -> dict[int, Point]:
        """From `low` on, which is where a period begins."""
        rows = self._db.execute(
            "SELECT start, count, total, least, most, sketch FROM points WHERE series = ? "
            "AND resolution <= ? AND start >= ? AND start < ?",
            (series, period_s, low, high),
        )
        points: dict[int, Point] = {}
        for start, *columns in rows:
            slot = low + (start - low) // period_s * period_s
            points.setdefault(slot, Point()).merge(_point(columns))
        return points

    def _recent_points(self, series: int, period_s: int, low: int, high: int) -> dict[int, Point]:
        """As `_points`, for alarms that look at the same quarter of an hour every ten seconds: only
        what came since the last time is read from the disk."""
        window = self._windows.get((series, period_s))
        if window is None or low < window.low or high < window.final:
            window = _Window(low, low, 0, {})
            if len(self._windows) >= MAX_WINDOWS:
                self._windows.clear()
            self._windows[series, period_s] = window
        fresh = window.fresh
        if fresh is None or window.fresh_high != high:
            fresh = self._points(series, period_s, window.final, high)
            window.fresh, window.fresh_high = fresh, high
        window.points |= fresh
        # Kept is what the reader that looks furthest back needs; a metric has two alarms.
        window.span_s = max(window.span_s, high - low)
        window.low = max(window.low, high - window.span_s)
        found = {start: point for start, point in window.points.items() if start >= low}
        # The newest two periods may still be added to.
        window.final = max(window.final, max(fresh, default=0) - period_s)
        window.points = {
            start: point
            for start, point in window.points.items()
            if window.low <= start < window.final
        }
        return found

    def _row(self, slot: Slot) -> Point | None:
        row = self._db.execute(
            "SELECT count, total, least, most, sketch FROM points "
            "WHERE series = ? AND resolution = ? AND start = ?",
            slot,
        ).fetchone()
        return None if row is None else _point(list(row))

    def _write(self, dirty: list[Slot]) -> None:
        if not dirty:
            return
        newest: dict[int, int] = {}
        for series, _, start in dirty:
            newest[series] = max(newest.get(series, 0), start)
        self._db.execute("BEGIN")
        try:
            self._db.executemany(
                "INSERT OR REPLACE INTO points VALUES (?,?,?,?,?,?,?,?)",
                [_columns(slot, self._open[slot]) for slot in dirty],
            )
            self._db.executemany(
                "UPDATE series SET newest = max(newest, ?) WHERE id = ?",
                [(start, series) for series, start in newest.items()],
            )
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        for slot in dirty:
            self._dirty[slot[0]].discard(slot)
            if slot[1] < 60:
                self._open.pop(slot)

    def _series_id(self, key: MetricKey) -> int:
        known = self._series.get(key)
        if known is not None:
            return known
        cursor = self._db.execute(
            "INSERT INTO series (account, namespace, name, dimensions, unit) VALUES (?,?,?,?,?)",
            (key.account, key.namespace, key.name, json.dumps(key.dimensions), key.unit),
        )
        created = cursor.lastrowid
        if created is None:
            raise RuntimeError("SQLite gave no row id for a new series")
        self._remember(key, created)
        return created

    def _remember(self, key: MetricKey, series: int) -> None:
        self._series[key] = series
        whatever_unit = (key.account, key.namespace, key.name, key.dimensions)
        self._units.setdefault(whatever_unit, []).append(key)

    def _merge_row(self, slot: Slot, point: Point) -> None:
        whole = self._row(slot) or Point()
        whole.merge(point)
        self._db.execute(
            "INSERT OR REPLACE INTO points VALUES (?,?,?,?,?,?,?,?)", _columns(slot, whole)
        )


def _columns(slot: Slot, point: Point) -> tuple[object, ...]:
    sketch = encode_sketch(point.sketch)
    return (*slot, point.count, point.total, point.least, point.most, sketch)


def _point(columns: list[object]) -> Point:
    count, total, least, most, sketch = columns
    assert isinstance(count, float) and isinstance(total, float)
    assert isinstance(least, float) and isinstance(most, float)
    assert sketch is None or isinstance(sketch, bytes)
    return Point(count, total, least, most, decode_sketch(sketch))


def _has_dimension(key: MetricKey, wanted: tuple[str, str | None]) -> bool:
    name, value = wanted
    return any(each == name and value in (None, has) for each, has in key.dimensions)
