"""Application Auto Scaling's own loop: readings -> metrics -> alarms -> decisions -> capacity.

A target decides as AWS documents it (`aws`), or every half second from exact counts (`fast`, chosen
by the tag `zeropull:scaling` on the scalable target or by the settings). `scaling.deciding` decides
for one target; here is what happens every second, and that nothing ends it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

from zeropull.autoscaler.alarms import AlarmState
from zeropull.controlapi.exchange import Exchange
from zeropull.errors import ZeropullError
from zeropull.metricstore.store import MetricStore
from zeropull.resources.settings import ScalingSettings
from zeropull.scaling.alarms import alarms_evaluated
from zeropull.scaling.deciding import KnownDecision, TargetDecisions
from zeropull.scaling.documents import ScalingDocuments
from zeropull.scaling.failures import TargetFailures
from zeropull.scaling.metrics import (
    LoadSecond,
    Resource,
    half_loads,
    publish_steps,
    publish_utilization,
)
from zeropull.scaling.proposals import EvaluatedAlarms
from zeropull.scaling.targets import TargetStates, loads_by_source
from zeropull.scaling.waking import ComponentWaker, waiting_requests
from zeropull.statestore import Store
from zeropull.telemetry import get_logger

TICK_S = 0.5
REPORT_LAG_S = 0.1
"""After each whole and half second: the gateways have reported it by then."""
READINGS_DELAY_S = 1
"""Alarms are evaluated this long after a period has ended, so that its readings are in."""
SLICE_S = 0.01
"""How long a tick may keep the event loop before others get their turn."""
UTILIZATION_S = 60
CHECKPOINT_S = 10
ROLL_UP_S = 3600

log = get_logger(__name__)


class ScalingController:
    """`run` until cancelled; `decisions` is what `zeropull explain` shows.

    An error of one target, one alarm or one part of a round leaves all others alone and ends no
    loop, whatever its kind: what is stored would bring it again at every start.
    """

    def __init__(
        self,
        store: Store,
        metrics: MetricStore,
        exchange: Exchange,
        settings: ScalingSettings,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._exchange = exchange
        self._clock = clock
        self._documents = ScalingDocuments(store, settings.mode)
        self._states = TargetStates(store, metrics, self._documents)
        self._deciding = TargetDecisions(store, metrics, self._documents, self._states)
        self._waker = ComponentWaker(store, self._documents, self._states)
        self._failures = TargetFailures(self._states)
        self._looked_s = clock()
        self._evaluated_s = 0
        self._utilized_s = 0.0
        self._rolled_up_s = 0.0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tick_forever())
            tasks.create_task(self._wake_forever())

    def decisions(self) -> dict[str, KnownDecision]:
        """By target key, of the targets that have been decided for."""
        return self._deciding.known()

    def wake_components(self) -> None:
        """Start the first copy of the components for which requests wait."""
        reports = (received.report for received in self._exchange.gateways.values())
        self._guarded("wake", lambda: self._waker.wake(waiting_requests(reports), self._clock()))

    def tick(self) -> None:
        """One second."""
        for _ in self._steps():
            pass

    def half_tick(self) -> None:
        """Half a second later: only the fast mode, of what had requests meanwhile."""
        now_s = self._clock()
        loads = loads_by_source(half_loads(self._exchange.take_halves()))
        for target in self._documents.targets.all() if loads else ():
            seen = loads.get(target.load_source)
            if seen and not self._failures.is_paused(target, now_s):
                with self._failures.noted(target, now_s):
                    self._deciding.decide_half(target, seen[-1], now_s)

    async def _wake_forever(self) -> None:
        """A request that begins to wait for a component without copies is not left until the next
        half second."""
        while True:
            await self._exchange.held.wait()
            self._exchange.held.clear()
            self.wake_components()

    async def _tick_forever(self) -> None:
        while True:
            now_s = self._clock()
            next_s = (int((now_s - REPORT_LAG_S) // TICK_S) + 1) * TICK_S
            await asyncio.sleep(next_s + REPORT_LAG_S - now_s)
            self.wake_components()
            if next_s % 1.0:
                self._guarded("half a second", self.half_tick)
            else:
                await self._tick_in_slices()
                if int(next_s) % CHECKPOINT_S == 0:
                    await asyncio.to_thread(self._metrics.checkpoint)

    async def _tick_in_slices(self) -> None:
        """One second, letting others run whenever it has taken a while: every ten seconds all
        alarms are evaluated, and requests for routes or operations should not wait for that."""
        began_s = time.monotonic()
        try:
            for _ in self._steps():
                if time.monotonic() - began_s >= SLICE_S:
                    await asyncio.sleep(0)
                    began_s = time.monotonic()
        except Exception as error:
            log.error("scaling round failed", error=str(error), exc_info=_unless_ours(error))

    def _steps(self) -> Iterator[None]:
        """The parts of a tick. None awaits, so that nothing changes under the feet of one; every
        one reads its documents itself, as they may have changed since the last."""
        now_s = self._clock()
        seconds: dict[tuple[Resource, int], LoadSecond] = {}
        readings = self._exchange.take_readings()
        yield from _guarded_steps("publish", publish_steps(self._metrics, readings, seconds))
        loads = loads_by_source(seconds)
        self._guarded("publish utilization", lambda: self._publish_utilization(now_s))
        yield
        boundary = int((now_s - READINGS_DELAY_S) // 10) * 10
        due = self._alarms_set(now_s)
        is_boundary = boundary > self._evaluated_s
        if is_boundary:
            self._evaluated_s = boundary
            yield from alarms_evaluated(
                self._store, self._metrics, self._documents.alarms.all(), boundary, due
            )
        evaluated = EvaluatedAlarms(due, self._evaluated_s)
        keys = [target.key for target in self._documents.targets.all()]
        for key in keys:
            target = self._documents.targets.get(key)
            if target is None or self._failures.is_paused(target, now_s):
                continue  # deregistered since, or it has just failed
            with self._failures.noted(target, now_s):
                self._deciding.decide(target, loads, evaluated, now_s)
            yield
        self._states.forget_others(set(keys))
        self._failures.forget_others(set(keys))
        # Rows of minutes are written after the alarms were evaluated: every ten seconds.
        kept = self._metrics.flush_steps(only_seconds=not is_boundary)
        yield from _guarded_steps("keep readings", kept)
        if now_s - self._rolled_up_s >= ROLL_UP_S:
            self._rolled_up_s = now_s
            yield from _guarded_steps("roll readings up", self._metrics.roll_up_steps(now_s))

    def _alarms_set(self, now_s: float) -> set[str]:
        """Keys of the alarms that users have put into ALARM since the last call: their actions are
        carried out before the next evaluation, which mostly changes the state again."""
        since_s, self._looked_s = self._looked_s, now_s
        return {
            alarm.key
            for alarm in self._documents.alarms.all()
            if alarm.set_s >= since_s
            and alarm.set_s == alarm.state_transitioned_s
            and alarm.state == AlarmState.ALARM
        }

    def _publish_utilization(self, now_s: float) -> None:
        if now_s - self._utilized_s < UTILIZATION_S:
            return
        self._utilized_s = now_s
        for instance in self._documents.instances.all():
            received = self._exchange.nodes.get(instance.instance_id)
            if received is not None and now_s - received.received_s < UTILIZATION_S:
                publish_utilization(
                    self._metrics,
                    received.report,
                    instance.account,
                    instance.endpoint,
                    instance.variant,
                )

    def _guarded(self, what: str, step: Callable[[], None]) -> None:
        """Do it; what goes wrong ends this step only."""
        try:
            step()
        except Exception as error:
            log.error(
                "scaling step failed", step=what, error=str(error), exc_info=_unless_ours(error)
            )


def _guarded_steps(what: str, steps: Iterator[None]) -> Iterator[None]:
    """The steps; what goes wrong ends these only."""
    try:
        yield from steps
    except Exception as error:
        log.error("scaling step failed", step=what, error=str(error), exc_info=_unless_ours(error))


def _unless_ours(error: Exception) -> Exception | None:
    """The traceback of an error that nobody foresaw; the project's own say enough."""
    return None if isinstance(error, ZeropullError) else error
