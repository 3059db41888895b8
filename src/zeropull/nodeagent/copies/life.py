"""The life of one copy on its node: image and model, container, /ping, restarts, end.

One task runs it. Everything that must survive is in the copy's record, which is written before the
step that it announces, so that another agent can go on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from zeropull.controlapi.messages import CopyReport, CopyState, FailureKind
from zeropull.nodeagent.containers import health
from zeropull.nodeagent.copies.ages import AgeOf
from zeropull.nodeagent.copies.health_watch import HealthWatch, Problem, describe_exit
from zeropull.nodeagent.copies.launching import Launcher, StartedWithout
from zeropull.nodeagent.copies.life_record import LifeRecord
from zeropull.nodeagent.copies.preparing import ArrivedImage, ArrivedModels, Preparation
from zeropull.nodeagent.copies.retrying import RESTART, plan_retry
from zeropull.nodeagent.failures import Failure, StageFailed, failing_as, failure_of, first_of
from zeropull.nodeagent.images.arriving_volumes import Arrival
from zeropull.nodeagent.records import CopyRecord
from zeropull.resources.stages import Stage
from zeropull.telemetry import get_logger

GRACE_S = 5.0  # of a container that is replaced: nobody waits for its answers

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CopyServices:
    """What a copy's life needs of its node. `save` stores the record and tells the reporter;
    `clock` gives Unix seconds, for what is told, and `monotonic` measures ages."""

    preparation: Preparation
    launcher: Launcher
    save: Callable[[CopyRecord], None]
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


class CopyLife:
    """Runs one copy until it is cancelled or has failed for good.

    No error leaves it: each becomes a failure with its reason in the record, and is tried again as
    `copies.retrying` decides, those that nobody foresaw as well.
    """

    def __init__(self, record: CopyRecord, services: CopyServices) -> None:
        self._record = LifeRecord(record, services.save, services.clock)
        self._services = services
        self._preparing = AgeOf(record.first_tried_s, services.clock, services.monotonic)
        self._starting = AgeOf(record.first_started_s, services.clock, services.monotonic)
        self._container = AgeOf(record.container_started_s, services.clock, services.monotonic)
        self._healthy = AgeOf(record.last_healthy_s, services.clock, services.monotonic)
        self._replace = asyncio.Event()
        self._replace_because: Failure | None = None
        self._before_start = Arrival()

    @property
    def record(self) -> CopyRecord:
        """As it stands."""
        return self._record.now

    @property
    def copy_id(self) -> str:
        return self.record.copy_id

    def replace_container(self, failure: Failure) -> None:
        """Start a new container in place of the one that runs now, as `failure` says."""
        self._replace_because = failure
        self._replace.set()

    async def run(self, *, adopt: bool) -> None:
        """Until cancelled, or until the copy cannot succeed any more (state FAILED)."""
        adopted = adopt
        while self.record.state is not CopyState.FAILED:
            try:
                if not adopted:
                    await self._wait_for_next_start()
                    image, models = await self._prepare()
                    await self._start(image, models)
                adopted = False
                failure = await self._watch()
            except StageFailed as failed:
                failure = failed.failure
            except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                log.exception("unforeseen error in a copy's life", copy_id=self.copy_id)
                failure = failure_of(first_of(error), Stage.HEALTH)
            await self._handle(failure)

    async def _wait_for_next_start(self) -> None:
        next_s = self.record.next_start_s
        if next_s is not None:
            # After a step of the wall clock the wait is no longer than any backoff.
            wait_s = max(0.0, next_s - self._services.clock())
            await asyncio.sleep(min(RESTART.limit_s, wait_s))

    async def _prepare(self) -> tuple[ArrivedImage, ArrivedModels]:
        now_s = self._services.clock()
        if self.record.first_tried_s is None:
            self._preparing.begin()
        # Here and not later: a layer may be found damaged while the container is being made.
        self._replace.clear()
        self._record.update(
            state=CopyState.PREPARING,
            first_tried_s=self.record.first_tried_s or now_s,
            next_start_s=None,
        )
        self._record.begin(Stage.IMAGE)
        self._record.begin(Stage.MODEL)
        try:
            async with asyncio.TaskGroup() as group:
                image = group.create_task(self._image())
                models = group.create_task(self._models())
        except BaseExceptionGroup as error:
            raise first_of(error) from error
        return image.result(), models.result()

    async def _image(self, *, plain_because: str = "") -> ArrivedImage:
        arrived = await self._services.preparation.image(
            self.record.assignment,
            partial(self._record.tell, Stage.IMAGE),
            plain_because=plain_because,
        )
        image = arrived.image
        self._record.update(image_name=image.name)
        self._record.end(
            Stage.IMAGE,
            bytes_by_source={
                "registry": 0 if arrived.shared else image.registry_bytes,
                arrived.volume_source: image.volume_metadata_bytes,
                "node": image.node_bytes,
            },
            layers_from_cache=image.layers_from_cache,
            layers_total=len(image.chain_ids),
            path=image.path,
            detail=image.detail,
        )
        return arrived

    async def _models(self) -> ArrivedModels:
        claimed: list[str] = []

        def claim(name: str) -> None:
            if name not in claimed:
                claimed.append(name)
                self._record.update(models=tuple(claimed))

        copy = self.record.assignment
        timeout_s = copy.model_download_timeout_s
        if self.record.healthy_at_s is None:
            timeout_s -= self._preparing.seconds
        arrived = await self._services.preparation.models(copy, claim, timeout_s)
        fetched = {"model_store": arrived.fetched_bytes}
        self._record.end(Stage.MODEL, bytes_by_source=fetched, detail=arrived.detail)
        return arrived

    async def _start(self, arrived: ArrivedImage, models: ArrivedModels) -> None:
        self._record.begin(Stage.START)
        self._before_start = await self._services.preparation.arrival()
        launcher, image = self._services.launcher, arrived.image
        with failing_as(Stage.START):
            try:
                used = await launcher.start(
                    self.record, image, models.models, self._remember_network
                )
            except StartedWithout as fallen:
                # The mount of our snapshotter failed: containerd's ordinary way, once more.
                why = f"the root could not be mounted: {fallen.error}"
                image = (await self._image(plain_because=why[:1000])).image
                try:
                    used = await launcher.start(
                        self.record, image, models.models, self._remember_network
                    )
                except StartedWithout as again:
                    raise again.error from again
        now_s = self._services.clock()
        self._container.begin()
        if self.record.first_started_s is None:
            self._starting.begin()
        self._record.end(Stage.START)
        self._record.begin(Stage.HEALTH)
        self._record.update(
            state=CopyState.STARTING,
            snapshotter=used,
            container_started_s=now_s,
            first_started_s=self.record.first_started_s or now_s,
        )

    async def _watch(self) -> Failure:
        """Until the container has to be replaced; says why."""
        exited = asyncio.create_task(self._services.launcher.wait(self.copy_id))
        replaced = asyncio.create_task(self._replace.wait())
        pinged = asyncio.create_task(self._pings().until_problem())
        try:
            await asyncio.wait({exited, replaced, pinged}, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                why = describe_exit(exited.result())
                return Failure(FailureKind.CONTAINER_EXITED, why, retry=True, with_log=True)
            if replaced.done() and self._replace_because is not None:
                return self._replace_because
            return self._judge(pinged.result())
        finally:
            for task in (exited, replaced, pinged):
                task.cancel()
            await asyncio.gather(exited, replaced, pinged, return_exceptions=True)

    def _pings(self) -> HealthWatch:
        # Until it was healthy once, restarts do not make the window any longer.
        never_healthy = self.record.healthy_at_s is None
        window = self._starting if never_healthy else self._container
        return HealthWatch(
            self.record.address,
            timeout_s=self.record.assignment.health_timeout_s,
            healthy=self.record.state is CopyState.HEALTHY,
            started_before_s=self._container.seconds,
            window_began_before_s=window.seconds,
            became_healthy=self._became_healthy,
            monotonic=self._services.monotonic,
        )

    async def _became_healthy(self) -> None:
        self._services.launcher.profiles.healthy(self.copy_id)
        now_s = self._services.clock()
        came = (await self._services.preparation.arrival()).since(self._before_start)
        network = {"network_cache": came.data_bytes} if came.data_bytes else {}
        self._record.end(Stage.HEALTH, bytes_by_source=network, detail=came.detail)
        self._healthy.begin()
        self._record.update(
            state=CopyState.HEALTHY,
            healthy_at_s=self.record.healthy_at_s or now_s,
            last_healthy_s=now_s,
            failure=None,
            message="",
        )
        log.info("copy is healthy", copy_id=self.copy_id, address=self.record.address)

    def _judge(self, problem: Problem) -> Failure:
        record = self.record
        if problem.was_healthy:
            self._record.update(state=CopyState.UNHEALTHY, message=problem.message)
        elif record.failure is FailureKind.CONTAINER_EXITED and record.message:
            # That those before it have exited says more than that this one came too late.
            return Failure(FailureKind.CONTAINER_EXITED, record.message, retry=True)
        return Failure(FailureKind.HEALTH_TIMEOUT, problem.message, retry=True, with_log=True)

    async def _handle(self, failure: Failure) -> None:
        """Clean up, then BACKOFF or FAILED."""
        grace_s = min(GRACE_S, self.record.assignment.stop_grace_s)
        if failure.kind is FailureKind.DISK_FULL:
            grace_s = 0.0  # it would go on to fill the disk
        # What is left is taken away before the next start, or when the copy is stopped.
        with contextlib.suppress(Exception):
            await self._services.launcher.tear_down(self.record, grace_s=grace_s)
        if failure.with_log:
            # Only now: the container's last words are in the log once its shim has gone.
            tail = await asyncio.to_thread(self._services.launcher.last_lines, self.copy_id)
            failure = dataclasses.replace(failure, message=_with_log(failure.message, tail))
        record = self.record
        retry = plan_retry(
            record,
            failure,
            preparing_s=self._preparing.seconds,
            starting_s=self._starting.seconds,
            served_s=self._healthy.seconds if record.last_healthy_s else 0.0,
        )
        changes: dict[str, Any] = {"failure": failure.kind, "message": retry.message}
        if retry.wait_s is None:
            self._record.update(state=CopyState.FAILED, next_start_s=None, **changes)
        else:
            self._record.update(
                state=CopyState.BACKOFF,
                next_start_s=self._services.clock() + retry.wait_s,
                failures_in_a_row=retry.failures_in_a_row,
                restarts=record.restarts + (1 if record.container_started_s else 0),
                last_healthy_s=None,
                **changes,
            )
        log.warning(
            "copy failed" if retry.wait_s is None else "copy will be started again",
            copy_id=self.copy_id,
            failure=failure.kind,
            reason=failure.message[:500],
            wait_s=retry.wait_s,
        )

    def _remember_network(self, address: str, snapshotter: str) -> None:
        self._record.update(address=address, snapshotter=snapshotter)


def report_of(record: CopyRecord) -> CopyReport:
    """The record as the control plane sees it."""
    order = list(Stage)
    return CopyReport(
        copy_id=record.copy_id,
        state=record.state,
        host=record.address or None,
        port=health.PORT,
        healthy_at_s=record.healthy_at_s,
        restarts=record.restarts,
        next_start_s=record.next_start_s,
        failure=record.failure,
        message=record.message,
        stages=tuple(sorted(record.stages.values(), key=lambda each: order.index(each.stage))),
    )


def _with_log(why: str, tail: str) -> str:
    return f"{why}. Last lines of its log:\n{tail}" if tail else f"{why}. Its log is empty."
