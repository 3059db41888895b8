"""The copies of a node: their records, and the task that cares for each of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from zeropull.controlapi.messages import CopyState, FailureKind, NodeAssignment
from zeropull.errors import ZeropullError
from zeropull.nodeagent.containers.containers import Containers
from zeropull.nodeagent.copies.launching import Launcher
from zeropull.nodeagent.copies.life import CopyLife, CopyServices, report_of
from zeropull.nodeagent.copies.preparing import Preparation
from zeropull.nodeagent.failures import Failure
from zeropull.nodeagent.models import NodeModels
from zeropull.nodeagent.plan import Action, ActionKind
from zeropull.nodeagent.quiet_times import LaunchesUnderWay
from zeropull.nodeagent.records import AgentRecords, CopyRecord, check_copy_id
from zeropull.tasks import TaskSet
from zeropull.telemetry import get_logger

_WITH_CONTAINER = frozenset({CopyState.STARTING, CopyState.HEALTHY, CopyState.UNHEALTHY})
_LAUNCHING = frozenset({CopyState.PREPARING, CopyState.STARTING})
MAX_COPIES = 10_000  # of one node

log = get_logger(__name__)


class NodeCopies:
    """Carries out the plan's actions. `launches` and `starts` are told which copies are on their
    way; `changed` is called when something is to be reported, `replan` when something is to be
    planned."""

    def __init__(
        self,
        records: AgentRecords,
        launches: LaunchesUnderWay,
        starts: LaunchesUnderWay,
        *,
        changed: Callable[[], None],
        replan: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.records: dict[str, CopyRecord] = records.load_copies()
        self._records_on_disk = records
        self._launches = launches
        self._starts = starts
        self._changed = changed
        self._replan = replan
        self._clock = clock
        self._layers: dict[tuple[str, float | None], Path] = {}
        self._lives: dict[str, CopyLife] = {}
        self._tasks = TaskSet[str, None]("copies", limit=MAX_COPIES)
        self._stopping = TaskSet[str, None]("stops", limit=MAX_COPIES, on_end=self._stopped)

    def serve_with(
        self,
        preparation: Preparation,
        launcher: Launcher,
        containers: Containers,
        models: NodeModels,
    ) -> None:
        """Once, before the first action: these need the records in their turn."""
        self._services = CopyServices(preparation, launcher, self.save, self._clock)
        self._launcher = launcher
        self._containers = containers
        self._models = models

    @property
    def living(self) -> list[str]:
        """Copies whose life goes on."""
        return list(self._tasks)

    @property
    def stopping(self) -> list[str]:
        """Copies that are being stopped."""
        return list(self._stopping)

    def begin(self, action: Action, assignment: NodeAssignment) -> None:
        """Start to carry out one action; returns at once."""
        copy_id = action.copy_id
        match action.kind:
            case ActionKind.START | ActionKind.ADOPT:
                self._run(copy_id, assignment, adopt=action.kind is ActionKind.ADOPT)
            case ActionKind.STOP:
                self._begin_stop(copy_id, self._stop(copy_id, assignment))
            case ActionKind.REMOVE_STRAY:
                self._begin_stop(copy_id, self._containers.kill_and_remove(copy_id, ""))
            case ActionKind.FORGET:
                self.records.pop(copy_id, None)
                self._lives.pop(copy_id, None)
                self._records_on_disk.remove_copy(copy_id)
                self._changed()

    def replace_users_of(self, manifest_digest: str, reason: str) -> None:
        """Give every running copy of the image a new container."""
        for copy_id, life in self._lives.items():
            if life.record.assignment.image == manifest_digest and copy_id in self._tasks:
                life.replace_container(Failure(FailureKind.IMAGE_INTEGRITY, reason, retry=True))

    def end_full(self, copy_id: str, reason: str) -> None:
        """End the container of a copy that fills the disk; it is started again with backoff."""
        if (life := self._lives.get(copy_id)) is not None:
            life.replace_container(Failure(FailureKind.DISK_FULL, reason, retry=True))

    async def writable_layers(self) -> dict[str, Path]:
        """The directory that each copy with a container writes to."""
        found: dict[str, Path] = {}
        for record in list(self.records.values()):
            if record.state in _WITH_CONTAINER and record.snapshotter:
                key = (record.copy_id, record.container_started_s)
                if key not in self._layers:
                    layer = await self._containers.writable_layer(
                        record.copy_id, record.snapshotter
                    )
                    if layer is None:
                        continue
                    self._layers[key] = layer
                found[record.copy_id] = self._layers[key]
        self._layers = {key: each for key, each in self._layers.items() if key[0] in found}
        return found

    def save(self, record: CopyRecord) -> None:
        """Store the record; what the control plane can see of a change is reported at once."""
        before = self.records.get(record.copy_id)
        self.records[record.copy_id] = record
        try:
            self._records_on_disk.save_copy(record)
        except OSError as error:
            # A full disk must not keep the reason from being reported: an agent that comes after
            # this one finds an older record, and begins from there.
            log.warning("record is not written", copy_id=record.copy_id, reason=str(error))
        self._launches.note(record.copy_id, is_launching=record.state in _LAUNCHING)
        self._starts.note(record.copy_id, is_launching=record.state is CopyState.STARTING)
        if before is None or report_of(before) != report_of(record):
            self._changed()

    def models_in_use(self) -> set[str]:
        """Names of the artifacts that copies need."""
        return {name for each in self.records.values() for name in each.models}

    def addresses_of_others(self, copy_id: str) -> set[str]:
        return {
            record.address
            for record in self.records.values()
            if record.address and record.copy_id != copy_id
        }

    async def close(self) -> None:
        """End every task; containers run on."""
        await self._tasks.close()
        await self._stopping.close()

    def _run(self, copy_id: str, assignment: NodeAssignment, *, adopt: bool) -> None:
        copy = next(each for each in assignment.copies if each.copy_id == copy_id)
        record = self.records.get(copy_id)
        if record is None:
            check_copy_id(copy_id)
            record = CopyRecord(copy, CopyState.PENDING)
            self.save(record)
        else:
            record = dataclasses.replace(record, assignment=copy)
        ran = record.state in (CopyState.STARTING, CopyState.HEALTHY, CopyState.UNHEALTHY)
        if ran and not adopt:
            # Its container ended while no agent was there to see it.
            record = dataclasses.replace(record, restarts=record.restarts + 1)
        # Nobody reaches a container with an address of a network that the node no longer has.
        adopt = adopt and ran and self._launcher.is_here(record.address)
        if adopt:
            self._services.preparation.remember(record)
        life = CopyLife(record, self._services)
        self._lives[copy_id] = life
        self._tasks.start(copy_id, self._live(life, adopt=adopt))

    async def _live(self, life: CopyLife, *, adopt: bool) -> None:
        try:
            await life.run(adopt=adopt)
        except Exception:
            # Not even the record can be written, as on a full disk. It stays as it is, so the next
            # plan begins this copy again.
            log.exception("the life of a copy broke off", copy_id=life.copy_id)

    def _begin_stop(self, copy_id: str, work: Coroutine[Any, Any, None]) -> None:
        async def stop() -> None:
            try:
                await work
            except (ZeropullError, OSError) as error:
                log.warning("stop will be tried again", copy_id=copy_id, reason=str(error))
            except Exception:
                log.exception("stop will be tried again", copy_id=copy_id)

        self._stopping.start(copy_id, stop())

    def _stopped(self, copy_id: str, error: BaseException | None) -> None:
        self._changed()

    async def _stop(self, copy_id: str, assignment: NodeAssignment) -> None:
        await self._tasks.cancel(copy_id)
        self._lives.pop(copy_id, None)
        wanted = next((each for each in assignment.copies if each.copy_id == copy_id), None)
        record = self.records.get(copy_id)
        if record is None:
            assert wanted is not None
            self.save(CopyRecord(wanted, CopyState.STOPPED))
            return
        self.save(dataclasses.replace(record, state=CopyState.STOPPING, next_start_s=None))
        grace_s = (wanted or record.assignment).stop_grace_s
        await self._launcher.tear_down(record, grace_s=grace_s)
        self.save(
            dataclasses.replace(
                record, state=CopyState.STOPPED, next_start_s=None, address="", models=()
            )
        )
        await self._models.evict()
        self._replan()
