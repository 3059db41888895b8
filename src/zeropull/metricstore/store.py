"""Readings in a SQLite file of their own, by account, namespace, metric and dimensions.

Points are kept at the resolution at which they came (1 or 60 s) and rolled up with age, as
CloudWatch does: below a minute for 3 hours, minutes for 15 days, 5 minutes for 63 days, hours for
455 days. Rows that are still being added to are kept in memory and reach the disk with `flush`,
which the owner calls about once a second; a process that is killed loses what came since.

Usable from any thread. Nothing holds the lock for long: large pieces of work let others in between,
and what reads the disk for long does so without it.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from zeropull.errors import DiskFull, Unavailable
from zeropull.metricstore.points import Point
from zeropull.metricstore.readings_file import ReadingsFile, is_damage
from zeropull.metricstore.rows import PointRows, points_between
from zeropull.metricstore.series import MetricKey as MetricKey
from zeropull.metricstore.series import SeriesIndex, matching
from zeropull.metricstore.windows import MAX_SPAN_S, SHORT_PERIODS_S, RecentWindows

RETENTION_S: tuple[tuple[int, int, int], ...] = (
    # resolution, kept for, rolled up into
    (1, 3 * 3600, 60),
    (60, 15 * 86400, 300),
    (300, 63 * 86400, 3600),
    (3600, 455 * 86400, 0),
)
SILENT_AFTER_S = 14 * 86400
"""ListMetrics forgets a metric that has had no datapoint for two weeks."""
PIECE = 100
"""Points or rows after which others get their turn: some 2 ms."""
PAUSE_S = 0.001

NewPoint = tuple[MetricKey, float, Point, int]
"""Series, Unix second, what is to be added, and its resolution."""


class MetricStore:
    """Open, then `add`, `read`, `flush`; `close` flushes."""

    def __init__(self, path: Path, *, max_per_account: int | None = None) -> None:
        """`max_per_account`: custom metrics that an account may have; None = any number.

        Raises:
            ConfigurationError: a newer release wrote the file.
        """
        self._lock = threading.RLock()
        self._file = ReadingsFile(path)
        self._series = SeriesIndex(self._file, max_per_account)
        self._rows = PointRows(self._file)
        self._windows = RecentWindows()
        try:
            self._series.load()
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            self._begin_anew(error)

    def close(self) -> None:
        try:
            self.flush()
        except (DiskFull, Unavailable):
            pass  # said when it was first tried
        finally:
            self._file.close()

    def add(self, key: MetricKey, at_s: float, point: Point, *, resolution: int = 60) -> None:
        """Merge `point` into the period of `resolution` (1 or 60) seconds that holds `at_s`."""
        start = int(at_s // resolution) * resolution
        with self._locked():
            series = self._series.id_of(key)
            self._rows.merge((series, resolution, start), point)
            if resolution < 60:
                self._windows.note_point(series, start)

    def add_all(self, points: Sequence[NewPoint]) -> None:
        """Add them and write them; for a thread that may take its time.

        Raises:
            NoCapacity: the account would have too many metrics; nothing is added.
            DiskFull: they are added, and wait in memory for room.
        """
        with self._locked():
            self._series.refuse_too_many({key for key, *_ in points})
        for piece in _pieces(points):
            with self.together():
                for key, at_s, point, resolution in piece:
                    self.add(key, at_s, point, resolution=resolution)
            time.sleep(PAUSE_S)  # else a thread that waits for the lock would hardly ever get it
        self.flush(pause_s=PAUSE_S)

    def checkpoint(self) -> None:
        """Bring what SQLite has in its log into the file, for a thread that may wait for the disk;
        nobody waits for it. About every ten seconds."""
        if self._file.reads_beside_writer:
            with contextlib.suppress(sqlite3.Error):
                self._file.reader().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is added inside waits for other threads once only, and new series are written once.
        Not for more than some hundred points: the others wait meanwhile."""
        with self._locked():
            try:
                with self._file.transaction():
                    yield
            except BaseException:
                # Series that were made inside are not in the file.
                self._series.load()
                self._rows.keep_only(set(self._series.ids()))
                raise

    def observe(
        self, key: MetricKey, at_s: float, value: float, *, resolution: int = 60, count: float = 1.0
    ) -> None:
        """`count` observations of `value`, without percentiles."""
        point = Point()
        point.add(value, count)
        self.add(key, at_s, point, resolution=resolution)

    def flush(self, *, only_seconds: bool = False, pause_s: float = 0.0) -> None:
        """Write what is buffered; `only_seconds` leaves the rows of minutes, which are added to
        until their minute has passed, for a later call. `pause_s`: between pieces of the work, for
        a thread that may take its time.

        Raises:
            DiskFull: it stays in memory for the next call.
        """
        for _ in self.flush_steps(only_seconds=only_seconds):
            if pause_s:
                time.sleep(pause_s)

    def flush_steps(self, *, only_seconds: bool = False) -> Iterator[None]:
        """As `flush`; a caller may do something else after each step."""
        with self._locked():
            dirty = self._rows.dirty(only_seconds=only_seconds)
        for piece in _pieces(dirty):
            with self._locked():
                self._rows.write(list(piece))
            yield
        if not only_seconds:
            with self._locked():
                self._rows.let_go(keep=set(dirty))

    def read(
        self, key: MetricKey, start_s: float, end_s: float, period_s: int, *, phase_s: int = 0
    ) -> dict[int, Point]:
        """Points by period start, for whole periods from the one that holds `start_s` to the one
        before `end_s`. Periods begin `phase_s` after a multiple of their length; those without
        data are absent.

        A period shorter than the resolution at which the data is kept has no points.
        """
        low = int((start_s - phase_s) // period_s) * period_s + phase_s
        high = int(-(-(end_s - phase_s) // period_s)) * period_s + phase_s
        with self._locked():
            series = self._series.known_id(key)
            if series is None:
                return {}
            dirty = self._rows.dirty_between(series, period_s, low, high)
            try:
                self._rows.write(dirty)
                unwritten = {}
            except sqlite3.OperationalError:  # without room, what is in memory counts as well
                unwritten = self._rows.unwritten(dirty)
            read = partial(points_between, self._file.db, series, period_s)
            if unwritten or not self._file.reads_beside_writer:
                return read(low, high, unwritten)
            if period_s in SHORT_PERIODS_S and not phase_s and high - low <= MAX_SPAN_S:
                return self._windows.points(
                    series, period_s, low, high, lambda low, high: read(low, high, {})
                )
        with self._damage_noticed():
            return points_between(self._file.reader(), series, period_s, low, high, {})

    def units_of(
        self, account: str, namespace: str, name: str, dimensions: Mapping[str, str]
    ) -> list[MetricKey]:
        """The series of one metric: one for every unit in which it came."""
        with self._lock:
            return self._series.units_of(account, namespace, name, dimensions)

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
        with contextlib.suppress(DiskFull):
            self.flush()
        with self._locked():
            known = self._series.with_ids()
            active = self._series.active(account, now_s - active_within_s)
            active |= self._rows.unwritten_series()
        return matching(
            known, active, account=account, namespace=namespace, name=name, dimensions=dimensions
        )

    def roll_up(self, now_s: float) -> None:
        """As `roll_up_steps`, all at once."""
        for _ in self.roll_up_steps(now_s):
            pass

    def roll_up_steps(self, now_s: float) -> Iterator[None]:
        """Merge what is past its retention into the next coarser resolution; forget the rest. A
        caller may do something else after each step.

        Raises:
            DiskFull: the rest is done by the next call.
        """
        self.flush()
        with self._locked():
            self._rows.let_go(keep=set())
            self._windows.clear()
            series = self._series.ids()
        for resolution, kept_s, coarser in RETENTION_S:
            limit = int((now_s - kept_s) // 3600) * 3600
            for piece in _pieces(series):
                for each in piece:
                    while self._roll_up_piece(each, resolution, limit, coarser):
                        yield
                yield
        with self._locked():
            self._series.drop_silent(now_s - RETENTION_S[-1][1])

    def _roll_up_piece(self, series: int, resolution: int, limit: int, coarser: int) -> bool:
        """False when nothing is left to do for the series."""
        with self._locked():
            self._rows.settle(series)
            found = self._rows.older(series, resolution, limit, PIECE)
            if not found:
                return False
            merged: dict[int, Point] = {}
            for start, point in found.items() if coarser else ():
                merged.setdefault(start // coarser * coarser, Point()).merge(point)
            with self._file.transaction() as db:
                for start, point in merged.items():
                    self._rows.merge_on_disk(db, (series, coarser, start), point)
                db.execute(
                    "DELETE FROM points WHERE series = ? AND resolution = ? AND start <= ?",
                    (series, resolution, max(found)),
                )
        return len(found) == PIECE

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock, self._damage_noticed():
            yield

    @contextlib.contextmanager
    def _damage_noticed(self) -> Iterator[None]:
        """SQLite's errors as ours. When the file is damaged, it is begun anew first.

        Raises:
            DiskFull: there is no room.
            Unavailable: the call can be made again.
        """
        try:
            yield
        except sqlite3.Error as error:
            if is_damage(error):
                with self._lock:
                    self._begin_anew(error)
            raise self._file.translated(error) from error

    def _begin_anew(self, error: Exception) -> None:
        self._file.begin_anew(error)
        self._rows.forget()
        self._windows.clear()
        self._series.load()


T = TypeVar("T")


def _pieces(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), PIECE):
        yield items[first : first + PIECE]
