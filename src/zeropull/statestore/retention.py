"""How long the records of things that are gone stay. Without a limit, history grows for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from zeropull.errors import ZeropullError
from zeropull.resources.alarms import AlarmHistory, MetricAlarm
from zeropull.resources.endpoints import Endpoint
from zeropull.resources.instances import TimelineRecord
from zeropull.resources.scaling import ScalingActivity
from zeropull.statestore.store import Store
from zeropull.telemetry import get_logger

INTERVAL_S = 600.0
ACTIVITIES_S = 42 * 86400
"""DescribeScalingActivities of AWS tells of the last six weeks."""
ALARM_HISTORY_S = 30 * 86400
"""CloudWatch keeps the history of alarms for 30 days."""
PIECE = 100
"""Documents that are looked at before others get their turn."""

T = TypeVar("T")

log = get_logger(__name__)


class Retention:
    """`run` until cancelled."""

    def __init__(self, store: Store, launches: int, clock: Callable[[], float]) -> None:
        """`launches`: how many of endpoints that are gone are remembered, of all together."""
        self._store = store
        self._launches = launches
        self._clock = clock

    async def run(self) -> None:
        while True:
            try:
                for _ in self.steps():
                    await asyncio.sleep(0)
            except ZeropullError as error:
                log.error("old documents not removed", error=error.reason)
            except Exception as error:  # the next time it may be gone
                log.error("old documents not removed", error=str(error), exc_info=error)
            await asyncio.sleep(INTERVAL_S)

    def steps(self) -> Iterator[None]:
        """Remove records that are too old, one piece in each step."""
        now_s = self._clock()
        yield from self._forget_timelines()
        yield from self._forget_activities(now_s - ACTIVITIES_S)
        yield from self._forget_alarm_history(now_s - ALARM_HISTORY_S)

    def _forget_timelines(self) -> Iterator[None]:
        known = {stored.document.uid for stored in self._store.select(Endpoint)}
        gone: list[tuple[float, str]] = []
        for uid in sorted(self._store.endpoint_uids(TimelineRecord) - known):
            found = self._store.select(TimelineRecord, endpoint_uid=uid)
            gone += [(each.document.began_s, each.document.copy_id) for each in found]
            yield
        oldest = sorted(gone)[: max(0, len(gone) - self._launches)]
        for piece in _pieces(oldest):
            with self._store.transaction():
                for _, copy_id in piece:
                    self._store.delete(TimelineRecord, copy_id)
            yield

    def _forget_activities(self, before_s: float) -> Iterator[None]:
        for piece in _pieces(self._store.keys(ScalingActivity)):
            with self._store.transaction():
                for key in piece:
                    stored = self._store.get(ScalingActivity, key)
                    if stored is not None and (stored.document.ended_s or before_s) < before_s:
                        self._store.delete(ScalingActivity, key)
            yield

    def _forget_alarm_history(self, before_s: float) -> Iterator[None]:
        alarms = set(self._store.keys(MetricAlarm))
        for piece in _pieces(self._store.keys(AlarmHistory)):
            with self._store.transaction():
                for key in piece:
                    self._shorten(key, before_s, is_gone=key not in alarms)
            yield

    def _shorten(self, key: str, before_s: float, *, is_gone: bool) -> None:
        stored = self._store.get(AlarmHistory, key)
        if stored is None:
            return
        events = tuple(event for event in stored.document.events if event.at_s >= before_s)
        if not events and is_gone:
            self._store.delete(AlarmHistory, key)
        elif len(events) < len(stored.document.events):
            self._store.put(replace(stored.document, events=events))


def _pieces(items: Iterable[T]) -> Iterator[list[T]]:
    walk = iter(items)
    while piece := list(islice(walk, PIECE)):
        yield piece
