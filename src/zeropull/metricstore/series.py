"""The names of series: what each is called in the file, and how many an account may have."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from zeropull.errors import NoCapacity
from zeropull.metricstore.readings_file import ReadingsFile


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

    @property
    def is_custom(self) -> bool:
        """An account has put it. The number of all others is bounded by that of endpoints."""
        return not self.namespace.startswith(("AWS/", "/aws/"))

    def has(self, dimension: tuple[str, str | None]) -> bool:
        """Whether it has a dimension of that name, and of that value unless it is None."""
        name, value = dimension
        return any(each == name and value in (None, has) for each, has in self.dimensions)


class SeriesIndex:
    """Every series of the file, in memory. One thread at a time."""

    def __init__(self, file: ReadingsFile, max_custom: int | None) -> None:
        """`max_custom`: custom metrics of one account; None = any number."""
        self._file = file
        self._max_custom = max_custom
        self._ids: dict[MetricKey, int] = {}
        self._units: dict[tuple[object, ...], list[MetricKey]] = {}
        self._custom: Counter[str] = Counter()  # by account

    def load(self) -> None:
        """Read them (again)."""
        self._ids.clear()
        self._units.clear()
        self._custom.clear()
        for row in self._file.db.execute(
            "SELECT id, account, namespace, name, dimensions, unit FROM series"
        ):
            dimensions = tuple((key, value) for key, value in json.loads(row[4]))
            self._remember(MetricKey(row[1], row[2], row[3], dimensions, row[5]), row[0])

    def ids(self) -> list[int]:
        return list(self._ids.values())

    def known_id(self, key: MetricKey) -> int | None:
        return self._ids.get(key)

    def id_of(self, key: MetricKey) -> int:
        """Made when there is none."""
        known = self._ids.get(key)
        if known is not None:
            return known
        cursor = self._file.db.execute(
            "INSERT INTO series (account, namespace, name, dimensions, unit) VALUES (?,?,?,?,?)",
            (key.account, key.namespace, key.name, json.dumps(key.dimensions), key.unit),
        )
        created = cursor.lastrowid
        if created is None:
            raise RuntimeError("SQLite gave no row id for a new series")
        self._remember(key, created)
        return created

    def units_of(
        self, account: str, namespace: str, name: str, dimensions: Mapping[str, str]
    ) -> list[MetricKey]:
        wanted = tuple(sorted(dimensions.items()))
        return list(self._units.get((account, namespace, name, wanted), ()))

    def with_ids(self) -> list[tuple[MetricKey, int]]:
        return list(self._ids.items())

    def active(self, account: str, since_s: float) -> set[int]:
        """IDs of the account's series with a datapoint on the disk that is not older."""
        rows = self._file.db.execute(
            "SELECT id FROM series WHERE account = ? AND newest >= ?", (account, since_s)
        )
        return {int(row[0]) for row in rows}

    def refuse_too_many(self, keys: Collection[MetricKey]) -> None:
        """
        Raises:
            NoCapacity: an account would have more custom metrics than it may.
        """
        if self._max_custom is None:
            return
        added = Counter(key.account for key in keys if key.is_custom and key not in self._ids)
        for account, count in added.items():
            if self._custom[account] + count > self._max_custom:
                raise NoCapacity(
                    f"The account has {self._custom[account]} custom metrics, and {count} more "
                    f"would be above the limit of {self._max_custom} (metrics.max_per_account)."
                )

    def drop_silent(self, since_s: float) -> None:
        """Forget series whose newest datapoint is older, and has gone."""
        with self._file.transaction() as db:
            gone = db.execute(
                "DELETE FROM series WHERE newest > 0 AND newest < ? AND NOT EXISTS "
                "(SELECT 1 FROM points WHERE series = series.id)",
                (since_s,),
            ).rowcount
        if gone:
            self.load()

    def _remember(self, key: MetricKey, series: int) -> None:
        self._ids[key] = series
        whatever_unit = (key.account, key.namespace, key.name, key.dimensions)
        self._units.setdefault(whatever_unit, []).append(key)
        self._custom[key.account] += key.is_custom


def matching(
    known: Iterable[tuple[MetricKey, int]],
    active: set[int],
    *,
    account: str,
    namespace: str | None,
    name: str | None,
    dimensions: Iterable[tuple[str, str | None]],
) -> list[MetricKey]:
    """Of the `active` series, those that have what is named (None = any), sorted by name."""
    wanted = list(dimensions)
    found = [
        key
        for key, series in known
        if series in active
        and key.account == account
        and (namespace is None or key.namespace == namespace)
        and (name is None or key.name == name)
        and all(key.has(each) for each in wanted)
    ]
    return sorted(found, key=lambda key: (key.namespace, key.name, key.dimensions, key.unit))
