"""Rows of points: those on the disk, and those in memory that are still being added to."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from zeropull.metricstore.points import Point, decode_sketch, encode_sketch
from zeropull.metricstore.readings_file import ReadingsFile, Row

Slot = tuple[int, int, int]
"""Series, resolution and start of a row."""
MAX_UNWRITTEN = 200_000
"""Rows that may wait in memory for room on the disk, about 100 MB; more are dropped."""

_PUT = "INSERT OR REPLACE INTO points VALUES (?,?,?,?,?,?,?,?)"


class PointRows:
    """One thread at a time; a killed process loses what was not written."""

    def __init__(self, file: ReadingsFile) -> None:
        self._file = file
        self._open: dict[Slot, Point] = {}  # whole rows: what is on disk and what came since
        self._dirty: dict[int, set[Slot]] = {}  # by series

    def forget(self) -> None:
        self._open.clear()
        self._dirty.clear()

    def keep_only(self, series: set[int]) -> None:
        """Rows of other series are forgotten."""
        self._open = {slot: row for slot, row in self._open.items() if slot[0] in series}
        self._dirty = {each: slots for each, slots in self._dirty.items() if each in series}

    def merge(self, slot: Slot, point: Point) -> None:
        """Add the point to a row, in memory."""
        row = self._open.get(slot)
        if row is None:
            row = self._open[slot] = self._row(slot) or Point()
        row.merge(point)
        self._dirty.setdefault(slot[0], set()).add(slot)

    def dirty(self, *, only_seconds: bool = False) -> list[Slot]:
        return [
            slot
            for slots in self._dirty.values()
            for slot in slots
            if slot[1] < 60 or not only_seconds
        ]

    def dirty_between(self, series: int, period_s: int, low: int, high: int) -> list[Slot]:
        """Rows of the series from `low` up to `high`, not coarser than `period_s`."""
        slots = self._dirty.get(series, ())
        return [slot for slot in slots if slot[1] <= period_s and low <= slot[2] < high]

    def unwritten_series(self) -> set[int]:
        return set(self._dirty)

    def write(self, slots: list[Slot]) -> None:
        """Those of the rows that are not on the disk yet.

        Raises:
            sqlite3.Error: they stay in memory, the newest MAX_UNWRITTEN of all.
        """
        slots = [slot for slot in slots if slot in self._dirty.get(slot[0], ())]
        if not slots:
            return
        newest: dict[int, int] = {}
        for series, _, start in slots:
            newest[series] = max(newest.get(series, 0), start)
        try:
            with self._file.transaction() as db:
                db.executemany(_PUT, [_columns(slot, self._open[slot]) for slot in slots])
                db.executemany(
                    "UPDATE series SET newest = max(newest, ?) WHERE id = ?",
                    [(start, series) for series, start in newest.items()],
                )
        except sqlite3.Error:
            self._drop_oldest()
            raise
        for slot in slots:
            self._no_longer_dirty(slot)
            if slot[1] < 60:
                self._open.pop(slot)

    def settle(self, series: int) -> None:
        """Write the rows of one series and keep none of them in memory."""
        slots = list(self._dirty.get(series, ()))
        self.write(slots)
        for slot in slots:
            self._open.pop(slot, None)

    def let_go(self, keep: set[Slot]) -> None:
        """Of rows that are on the disk, only `keep` stay in memory."""
        self._open = {
            slot: row
            for slot, row in self._open.items()
            if slot in keep or slot in self._dirty.get(slot[0], ())
        }

    def unwritten(self, slots: list[Slot]) -> dict[Slot, Point]:
        return {slot: self._open[slot] for slot in slots if slot in self._open}

    def merge_on_disk(self, db: sqlite3.Connection, slot: Slot, point: Point) -> None:
        """Inside a transaction of the caller."""
        whole = self._row(slot) or Point()
        whole.merge(point)
        db.execute(_PUT, _columns(slot, whole))

    def older(self, series: int, resolution: int, limit: int, count: int) -> dict[int, Point]:
        """Up to `count` of the series' oldest rows that start before `limit`, by their start."""
        rows = self._file.db.execute(
            "SELECT start, count, total, least, most, sketch FROM points "
            "WHERE series = ? AND resolution = ? AND start < ? ORDER BY start LIMIT ?",
            (series, resolution, limit, count),
        )
        return {int(start): _point(columns) for start, *columns in rows}

    def _row(self, slot: Slot) -> Point | None:
        row = self._file.db.execute(
            "SELECT count, total, least, most, sketch FROM points "
            "WHERE series = ? AND resolution = ? AND start = ?",
            slot,
        ).fetchone()
        return None if row is None else _point(list(row))

    def _drop_oldest(self) -> None:
        waiting = self.dirty()
        for slot in sorted(waiting, key=lambda each: each[2])[:-MAX_UNWRITTEN]:
            self._no_longer_dirty(slot)
            self._open.pop(slot, None)

    def _no_longer_dirty(self, slot: Slot) -> None:
        slots = self._dirty[slot[0]]
        slots.discard(slot)
        if not slots:
            del self._dirty[slot[0]]


def points_between(
    db: sqlite3.Connection,
    series: int,
    period_s: int,
    low: int,
    high: int,
    unwritten: Mapping[Slot, Point],
) -> dict[int, Point]:
    """By period, the first of which begins at `low`. Rows in `unwritten` count in place of those on
    the disk."""
    rows = db.execute(
        "SELECT resolution, start, count, total, least, most, sketch FROM points WHERE series = ? "
        "AND resolution <= ? AND start >= ? AND start < ?",
        (series, period_s, low, high),
    )
    points: dict[int, Point] = {}
    for resolution, start, *columns in rows:
        if (series, resolution, start) not in unwritten:
            place = low + (start - low) // period_s * period_s
            points.setdefault(place, Point()).merge(_point(columns))
    for (_, _, start), point in unwritten.items():
        place = low + (start - low) // period_s * period_s
        points.setdefault(place, Point()).merge(point)
    return points


def _columns(slot: Slot, point: Point) -> Row:
    sketch = encode_sketch(point.sketch)
    return (*slot, point.count, point.total, point.least, point.most, sketch)


def _point(columns: list[object]) -> Point:
    count, total, least, most, sketch = columns
    if not (
        isinstance(count, float)
        and isinstance(total, float)
        and isinstance(least, float)
        and isinstance(most, float)
        and (sketch is None or isinstance(sketch, bytes))
    ):
        return Point()  # a damaged row: one period less
    return Point(count, total, least, most, decode_sketch(sketch))
