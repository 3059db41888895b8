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
from typing import Any, TypeVar

from zeropull.controlapi.messages import (
    CopyReport,
    CopyState,
    FailureKind,
    ImageAssignment,
)
from zeropull.errors import ZeropullError
from zeropull.nodeagent.containers import health
from zeropull.nodeagent.containers.launching import Launcher, StartedWithout
from zeropull.nodeagent.failures import Failure, failure_of
from zeropull.nodeagent.images.image_on_node import ImageOnNode
from zeropull.nodeagent.models import ModelOnNode
from zeropull.nodeagent.plan import BACKOFF_FORGOTTEN_AFTER_S, RESTART, first_start_given_up
from zeropull.nodeagent.records import CopyRecord
from zeropull.resources.stages import Stage, StageRecord
from zeropull.telemetry import get_logger

PREPARE_RETRY_S = 120.0  # a registry or store that is away this long fails the copy
PROGRESS_INTERVAL_S = 1.0
START_ATTEMPTS = 3  # of a container that runc refuses

_T = TypeVar("_T")

log = get_logger(__name__)


class StageFailed(Exception):
    """Carries a stage's failure to where it is decided what to do; never leaves this module."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class CopyServices:
    """What a copy's life needs of its node. `save` stores the record and tells the reporter."""

    launcher: Launcher
    image_of: Callable[[str], ImageAssignment | None]
    save: Callable[[CopyRecord], None]
    clock: Callable[[], float] = time.time


class CopyLife:
    """Runs one copy until it is cancelled or has failed for good."""

    def __init__(self, record: CopyRecord, services: CopyServices) -> None:
        self.record = record
        self._services = services
        self._clock = services.clock
        self._replace = asyncio.Event()
        self._replace_reason = ""

    @property
    def copy_id(self) -> str:
        return self.record.copy_id

    def replace_container(self, reason: str) -> None:
        """Start a new container in place of the one that runs now."""
        self._replace_reason = reason
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
            except (ZeropullError, OSError) as error:
                failure = failure_of(error, Stage.HEALTH)
            await self._handle(failure)

    # ------------------------------------------------------------------ steps

    async def _wait_for_next_start(self) -> None:
        if self.record.next_start_s is not None:
            await asyncio.sleep(max(0.0, self.record.next_start_s - self._clock()))

    async def _prepare(self) -> tuple[ImageOnNode, list[ModelOnNode]]:
        first_tried_s = self.record.first_tried_s or self._clock()
        # Here and not later: a layer may be found damaged while the container is being made.
        self._replace.clear()
        self._update(state=CopyState.PREPARING, first_tried_s=first_tried_s, next_start_s=None)
        self._begin(Stage.IMAGE)
        self._begin(Stage.MODEL)
        try:
            async with asyncio.TaskGroup() as group:
                image = group.create_task(self._image())
                models = group.create_task(self._models())
        except BaseExceptionGroup as error:
            raise _first_of(error) from error
        return image.result(), models.result()

    async def _image(self) -> ImageOnNode:
        assignment = self._services.image_of(self.record.assignment.image)
        if assignment is None:
            message = f"the assignment has no image {self.record.assignment.image}"
            raise StageFailed(Failure(FailureKind.INTERNAL, message, retry=True))
        teller = asyncio.create_task(self._tell_progress(assignment.manifest_digest))
        try:
            image, shared = await self._services.launcher.image(assignment)
        except (ZeropullError, OSError) as error:
            raise StageFailed(failure_of(error, Stage.IMAGE)) from error
        finally:
            teller.cancel()
            await asyncio.gather(teller, return_exceptions=True)
        self._update(image_name=image.name)
        self._end(
            Stage.IMAGE,
            bytes_by_source={
                "registry": 0 if shared else image.registry_bytes,
                "volume": image.volume_metadata_bytes,
                "node": image.node_bytes,
            },
            layers_from_cache=image.layers_from_cache,
            layers_total=len(image.chain_ids),
            path=image.path,
            detail=image.detail,
        )
        return image

    async def _tell_progress(self, manifest_digest: str) -> None:
        """Keep the image stage's detail at what has arrived so far."""
        while True:
            await asyncio.sleep(PROGRESS_INTERVAL_S)
            detail = self._services.launcher.image_progress(manifest_digest)
            known = self.record.stages.get(Stage.IMAGE)
            if known and known.ended_s is None and detail and detail != known.detail:
                told = dataclasses.replace(known, detail=detail)
                self._update(stages={**self.record.stages, Stage.IMAGE: told})

    async def _models(self) -> list[ModelOnNode]:
        copy = self.record.assignment
        link = self._services.launcher.models.link
        before = link.shared
        found: list[ModelOnNode] = []
        claimed: list[str] = []

        def claim(name: str) -> None:
            if name not in claimed:
                claimed.append(name)
                self._update(models=tuple(claimed))

        try:
            async with asyncio.timeout(copy.model_download_timeout_s):
                for artifact in copy.artifacts:
                    model = await self._services.launcher.models.ensure(
                        artifact, enable_caching=copy.enable_caching, claim=claim
                    )
                    found.append(model)
        except TimeoutError as error:
            message = (
                f"the model artifacts did not arrive within {copy.model_download_timeout_s:g} s: "
                "check the object store, or allow more with ModelDataDownloadTimeoutInSeconds"
            )
            raise StageFailed(failure_of(TimeoutError(message), Stage.MODEL)) from error
        except (ZeropullError, OSError) as error:
            raise StageFailed(failure_of(error, Stage.MODEL)) from error
        fetched = sum(model.fetched_bytes for model in found)
        told = link.told(before) if fetched else ""
        detail = f"{len(found)} artifacts, {fetched:,} B from the model store"
        detail += f", {told}" if told else ""
        self._end(Stage.MODEL, bytes_by_source={"model_store": fetched}, detail=detail)
        return found

    async def _start(self, image: ImageOnNode, models: list[ModelOnNode]) -> None:
        self._begin(Stage.START)
        launcher = self._services.launcher
        try:
            used = await launcher.start(self.record, image, models, self._remember_network)
        except StartedWithout as fallen:
            # The mount of our snapshotter failed: containerd's ordinary way, once more.
            assignment = self._services.image_of(self.record.assignment.image)
            if assignment is None:
                raise StageFailed(failure_of(fallen.error, Stage.START)) from fallen
            try:
                image, _ = await launcher.image(assignment, plain=True)
            except (ZeropullError, OSError) as error:
                raise StageFailed(failure_of(error, Stage.IMAGE)) from error
            self._end(
                Stage.IMAGE,
                bytes_by_source={"registry": image.registry_bytes},
                layers_from_cache=image.layers_from_cache,
                path=image.path,
                detail=image.detail,
            )
            try:
                used = await launcher.start(self.record, image, models, self._remember_network)
            except StartedWithout as error:
                raise StageFailed(failure_of(error.error, Stage.START)) from error
            except (ZeropullError, OSError) as error:
                raise StageFailed(failure_of(error, Stage.START)) from error
        except (ZeropullError, OSError) as error:
            raise StageFailed(failure_of(error, Stage.START)) from error
        now_s = self._clock()
        self._end(Stage.START)
        self._begin(Stage.HEALTH)
        self._update(
            state=CopyState.STARTING,
            snapshotter=used,
            container_started_s=now_s,
            first_started_s=self.record.first_started_s or now_s,
        )

    def _remember_network(self, address: str, snapshotter: str) -> None:
        self._update(address=address, snapshotter=snapshotter)

    async def _watch(self) -> Failure:
        """Until the container has to be replaced; says why."""
        exited = asyncio.create_task(self._services.launcher.containers.wait(self.copy_id))
        replaced = asyncio.create_task(self._replace.wait())
        pinged = asyncio.create_task(self._watch_health())
        try:
            await asyncio.wait({exited, replaced, pinged}, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                return self._exit_failure(exited.result())
            if replaced.done():
                return Failure(FailureKind.IMAGE_INTEGRITY, self._replace_reason, retry=True)
            return pinged.result()
        finally:
            for task in (exited, replaced, pinged):
                task.cancel()
            await asyncio.gather(exited, replaced, pinged, return_exceptions=True)

    async def _watch_health(self) -> Failure:
        copy, bad = self.record.assignment, 0
        started_s = self.record.container_started_s or self._clock()
        # Until it was healthy once, restarts do not make the window any longer.
        first_s = self.record.first_started_s if self.record.healthy_at_s is None else None
        window_from_s = first_s or started_s
        healthy = self.record.state is CopyState.HEALTHY
        while True:
            problem = await health.ping(self.record.address)
            now_s = self._clock()
            if not problem:
                bad = 0
                if not healthy:
                    healthy = True
                    self._became_healthy(now_s)
            elif healthy:
                bad += 1
                if bad >= health.FAILURES_UNTIL_UNHEALTHY:
                    return self._unhealthy(f"/ping failed {bad} times in a row: {problem}")
            elif now_s - window_from_s > copy.health_timeout_s:
                return self._never_healthy(problem)
            await asyncio.sleep(
                health.ping_interval_s(healthy=healthy, since_start_s=now_s - started_s)
            )

    # ------------------------------------------------------------------ decisions and records

    def _became_healthy(self, now_s: float) -> None:
        self._services.launcher.profiles.healthy(self.copy_id)
        self._end(Stage.HEALTH)
        self._update(
            state=CopyState.HEALTHY,
            healthy_at_s=self.record.healthy_at_s or now_s,
            last_healthy_s=now_s,
            failure=None,
            message="",
        )
        log.info("copy is healthy", copy_id=self.copy_id, address=self.record.address)

    def _unhealthy(self, why: str) -> Failure:
        self._update(state=CopyState.UNHEALTHY, message=why)
        return Failure(FailureKind.HEALTH_TIMEOUT, self._with_log(why), retry=True)

    def _never_healthy(self, problem: str) -> Failure:
        if self.record.failure is FailureKind.CONTAINER_EXITED and self.record.message:
            # That those before it have exited says more than that this one came too late.
            return Failure(FailureKind.CONTAINER_EXITED, self.record.message, retry=True)
        why = (
            f"the container did not answer GET /ping on port {health.PORT} with status 200 within "
            f"{self.record.assignment.health_timeout_s:g} s (last attempt: {problem}): check its "
            "log, or allow more with ContainerStartupHealthCheckTimeoutInSeconds"
        )
        return Failure(FailureKind.HEALTH_TIMEOUT, self._with_log(why), retry=True)

    def _exit_failure(self, ended: Any) -> Failure:
        if ended is None:
            why = "the container's process is gone, and so is its exit status"
        elif ended.exit_status >= 128:
            number = ended.exit_status - 128
            why = f"the container was ended by signal {number} (exit status {ended.exit_status})"
            if number == 9:
                why += ": if it ran out of memory, give it more or a larger instance type"
        else:
            why = f"the container exited with status {ended.exit_status}"
        return Failure(FailureKind.CONTAINER_EXITED, self._with_log(why), retry=True)

    def _with_log(self, why: str) -> str:
        tail = self._services.launcher.last_lines(self.copy_id)
        return f"{why}. Last lines of its log:\n{tail}" if tail else f"{why}. Its log is empty."

    async def _handle(self, failure: Failure) -> None:
        """Clean up, then BACKOFF or FAILED."""
        launcher = self._services.launcher
        with contextlib.suppress(ZeropullError, OSError):
            await launcher.tear_down(self.record, grace_s=self._grace_s(failure))
        now_s = self._clock()
        record = self.record
        served_s = now_s - record.last_healthy_s if record.last_healthy_s else 0.0
        in_a_row = 1 if served_s > BACKOFF_FORGOTTEN_AFTER_S else record.failures_in_a_row + 1
        wait_s = RESTART.after(in_a_row)
        fatal = (
            not failure.retry
            or first_start_given_up(record, now_s + wait_s)
            or (failure.kind is FailureKind.CONTAINER_START and in_a_row >= START_ATTEMPTS)
            or self._preparing_too_long(now_s + wait_s)
        )
        changes: dict[str, Any] = {"failure": failure.kind, "message": failure.message}
        if fatal:
            self._update(state=CopyState.FAILED, next_start_s=None, **changes)
        else:
            self._update(
                state=CopyState.BACKOFF,
                next_start_s=now_s + wait_s,
                failures_in_a_row=in_a_row,
                restarts=record.restarts + (1 if record.container_started_s else 0),
                last_healthy_s=None,
                **changes,
            )
        log.warning(
            "copy failed" if fatal else "copy will be started again",
            copy_id=self.copy_id,
            failure=failure.kind,
            reason=failure.message[:500],
            wait_s=None if fatal else wait_s,
        )

    def _grace_s(self, failure: Failure) -> float:
        return min(5.0, self.record.assignment.stop_grace_s)

    def _preparing_too_long(self, now_s: float) -> bool:
        record = self.record
        if record.first_started_s is not None or record.first_tried_s is None:
            return False
        return now_s > record.first_tried_s + min(
            PREPARE_RETRY_S, record.assignment.health_timeout_s
        )

    def _update(self, **changes: Any) -> None:
        self.record = dataclasses.replace(self.record, **changes)
        self._services.save(self.record)

    def _begin(self, stage: Stage) -> None:
        """Stages tell of the launch: once a copy has been healthy, they stay as they are."""
        if self.record.healthy_at_s is not None:
            return
        known = self.record.stages.get(stage)
        if known is None:
            known = StageRecord(stage, self._clock())
        elif stage in (Stage.START, Stage.HEALTH):
            known = dataclasses.replace(known, ended_s=None)
        self._update(stages={**self.record.stages, stage: known})

    def _end(self, stage: Stage, **facts: Any) -> None:
        known = self.record.stages.get(stage)
        if known is None or self.record.healthy_at_s is not None:
            return
        if known.ended_s is not None and stage is not Stage.IMAGE:
            return
        if known.ended_s is not None and facts.get("path") != "containerd":
            return  # a later attempt found everything there; the first one's bytes are the truth
        ended = dataclasses.replace(known, ended_s=self._clock(), **facts)
        self._update(stages={**self.record.stages, stage: ended})


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


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first
