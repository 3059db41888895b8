"""The node agent: watches its assignment, makes the node so, and reports what is there.

Observe, plan (`nodeagent.plan`, pure), act. Every copy has a task of its own; the loop only starts
and ends those tasks. Containers outlive the agent: leaving the agent stops nothing, and the next
one adopts what runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from zeropull.backoff import Backoff
from zeropull.containerd.client import ContainerdClient
from zeropull.controlapi.client import ControlClient
from zeropull.controlapi.messages import (
    CopyReport,
    CopyState,
    ImageAssignment,
    NodeAssignment,
    NodeReport,
)
from zeropull.errors import ZeropullError
from zeropull.layers.pull import clean_layer_store
from zeropull.linux.tracefs import remove_instances
from zeropull.nodeagent.containers import logs
from zeropull.nodeagent.containers.containers import Containers
from zeropull.nodeagent.containers.launching import Launcher
from zeropull.nodeagent.copies import CopyLife, CopyServices, report_of
from zeropull.nodeagent.images.catalog import Catalog
from zeropull.nodeagent.images.ladder import NodeImages
from zeropull.nodeagent.images.reports import ImageReports
from zeropull.nodeagent.images.scrubbing import Scrubber
from zeropull.nodeagent.images.start_profiles import StartProfiles
from zeropull.nodeagent.models import NodeModels
from zeropull.nodeagent.plan import Action, ActionKind, plan_node
from zeropull.nodeagent.quiet_times import Launches
from zeropull.nodeagent.readings import Readings, agent_counters
from zeropull.nodeagent.records import AgentRecords, CopyRecord, check_copy_id
from zeropull.resources.node import NodeConfig
from zeropull.telemetry import get_logger

REPORT_INTERVAL_S = 5.0
PLAN_INTERVAL_S = 5.0  # also without any news: what failed to be stopped is tried again
ROTATE_INTERVAL_S = 2.0
_LAUNCHING = frozenset({CopyState.PREPARING, CopyState.STARTING})
RETRY = Backoff(first_s=0.2, limit_s=5.0)  # of calls to the control plane
CONTAINERD_WAIT_S = 60.0

log = get_logger(__name__)


class NodeAgent:
    """One node's agent; an async context manager. Entered = containerd answers and its
    namespace is there; `run` goes on until it is cancelled; left = no task of ours is left, while
    containers run on.
    """

    def __init__(
        self, config: NodeConfig, control: ControlClient, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._config = config
        self._control = control
        self._clock = clock
        self._started_s = clock()
        namespace = config.containerd_namespace or f"zeropull-{config.instance_id}"
        self._client = ContainerdClient(config.containerd_socket, namespace)
        self._records_on_disk = AgentRecords(config.agent_dir)
        self._records = self._records_on_disk.load_copies()
        self._assignment = self._records_on_disk.load_assignment()
        self._assignment_changed = asyncio.Condition()
        self._plan_now = asyncio.Event()
        self._report_now = asyncio.Event()
        self._acted_on = 0
        self._lives: dict[str, CopyLife] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping: dict[str, asyncio.Task[None]] = {}
        self._catalog = Catalog(config.catalog_dir, config.layers_dir, self._records_on_disk)
        self._images = NodeImages(
            config,
            self._client,
            self._catalog,
            self._records_on_disk,
            lambda: self._assignment,
            self._assignment_changed,
        )
        self._models = NodeModels(
            config.models_dir,
            disk=self._images.disk,
            link=self._images.link,
            in_use=lambda: {name for each in self._records.values() for name in each.models},
        )
        self._containers = Containers(self._client, runc=config.runc)
        self._launches = Launches()
        self._starts = Launches()  # of containers: the end of each launch
        self._scrubber = Scrubber(
            self._catalog, self._images, self._launches, self._replace_users_of
        )
        self._profiles = StartProfiles(
            config,
            self._catalog,
            lambda: self._assignment,
            self._starts,
            self._scrubber.condemn,
            self._containers.layers_of,
        )
        self._launcher = Launcher(
            config,
            self._containers,
            self._images,
            self._models,
            self._profiles,
            self._addresses_of_others,
        )
        self._image_reports = ImageReports(self._catalog, self._images)
        self._readings = Readings(config, self._images.disk)
        self._services = CopyServices(self._launcher, self._image_of, self._save, clock)

    async def __aenter__(self) -> Self:
        # A pull that died with the agent before this one: its layers are pulled anew.
        await asyncio.to_thread(clean_layer_store, self._config.layers_dir)
        await asyncio.to_thread(remove_instances, self._config.trace_prefix)
        await self._client.__aenter__()
        try:
            async with asyncio.timeout(CONTAINERD_WAIT_S):
                await self._persist(self._client.version)
                await self._client.namespaces.ensure(self._client.namespace)
            have = {name: r.address for name, r in self._records.items() if r.address}
            await self._launcher.guard_addresses(have)
            if self._assignment is not None:
                await self._images.recall(self._assignment.images)
        except BaseException:
            await self._client.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        tasks = [*self._tasks.values(), *self._stopping.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._profiles.close()
        await self._images.close()
        await self._models.close()
        await self._client.__aexit__(kind, error, trace)

    async def run(self) -> None:
        """Watch, act and report until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._act())
            group.create_task(self._report())
            group.create_task(self._rotate_logs())
            group.create_task(self._scrubber.run())
            group.create_task(self._readings.run())

    # ------------------------------------------------------------------ the loops

    async def _watch(self) -> None:
        since = 0
        while True:
            answer = await self._persist(functools.partial(self._control.watch_assignment, since))
            if answer is None:
                continue
            since = answer.version
            if answer.instance_id != self._config.instance_id:
                log.error("assignment is for another node", instance_id=answer.instance_id)
                continue
            self._records_on_disk.save_assignment(answer)
            async with self._assignment_changed:
                self._assignment = answer
                self._assignment_changed.notify_all()
            self._plan_now.set()

    async def _act(self) -> None:
        while True:
            if self._assignment is not None:
                try:
                    await self._plan_once(self._assignment)
                except ZeropullError as error:
                    log.warning("cannot see the node's containers", reason=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PLAN_INTERVAL_S):
                    await self._plan_now.wait()
            self._plan_now.clear()

    async def _plan_once(self, assignment: NodeAssignment) -> None:
        running = await self._containers.running()
        known = await self._containers.known()
        living = [copy_id for copy_id, task in self._tasks.items() if not task.done()]
        actions = plan_node(assignment, self._records, running, known, living, self._stopping)
        for action in actions:
            log.info("acting", action=action.kind, copy_id=action.copy_id, reason=action.reason)
            self._begin(action, assignment)
        self._image_reports.refresh(assignment)
        await self._release_unused(assignment)
        if self._acted_on != assignment.version:
            self._acted_on = assignment.version
            self._report_now.set()

    async def _release_unused(self, assignment: NodeAssignment) -> None:
        """Let go of images that nobody is to run any more, so that volumes can be detached."""
        wanted = {image.manifest_digest for image in assignment.images}
        wanted |= {
            record.assignment.image
            for record in self._records.values()
            if record.state is not CopyState.STOPPED
        }
        await self._images.release_unused(wanted)
        await asyncio.to_thread(self._catalog.prune, assignment.volumes)

    async def _report(self) -> None:
        while True:
            self._report_now.clear()
            await self._persist(lambda: self._control.report(self.report()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_INTERVAL_S):
                    await self._report_now.wait()

    async def _rotate_logs(self) -> None:
        while True:
            await asyncio.sleep(ROTATE_INTERVAL_S)
            for copy_id in list(self._records):
                path = logs.log_file(self._config.logs_dir, copy_id)
                try:
                    await asyncio.to_thread(logs.rotate, path)
                except OSError as error:
                    log.warning("log cannot be rotated", copy_id=copy_id, reason=str(error))
            try:
                await asyncio.to_thread(logs.rotate_daemons, self._config.logs_dir)
                await asyncio.to_thread(logs.prune, self._config.logs_dir, frozenset(self._records))
            except OSError as error:
                log.warning("logs cannot be rotated or removed", reason=str(error))

    def report(self) -> NodeReport:
        """The node's whole state now."""
        return NodeReport(
            instance_id=self._config.instance_id,
            assignment_version=self._acted_on,
            sent_at_s=self._clock(),
            agent_started_s=self._started_s,
            copies=tuple(report_of(record) for _, record in sorted(self._records.items())),
            images=self._image_reports.reports(self._assignment),
            counters={
                **self._readings.plugin_counters,
                **agent_counters(
                    registry_bytes=self._images.registry_bytes,
                    model_store_bytes=self._models.fetched_bytes,
                    verification_failures=self._catalog.failures,
                    image_paths=self._images.paths,
                    fallbacks=self._images.fallbacks,
                ),
            },
            utilization=self._readings.utilization,
        )

    # ------------------------------------------------------------------ acting

    def _begin(self, action: Action, assignment: NodeAssignment) -> None:
        copy_id = action.copy_id
        match action.kind:
            case ActionKind.START | ActionKind.ADOPT:
                self._run_copy(copy_id, assignment, adopt=action.kind is ActionKind.ADOPT)
            case ActionKind.STOP:
                self._spawn_stop(copy_id, self._stop(copy_id, assignment))
            case ActionKind.REMOVE_STRAY:
                self._spawn_stop(copy_id, self._containers.kill_and_remove(copy_id, ""))
            case ActionKind.FORGET:
                self._records.pop(copy_id, None)
                self._lives.pop(copy_id, None)
                self._tasks.pop(copy_id, None)
                self._records_on_disk.remove_copy(copy_id)
                self._report_now.set()

    def _run_copy(self, copy_id: str, assignment: NodeAssignment, *, adopt: bool) -> None:
        copy = next(each for each in assignment.copies if each.copy_id == copy_id)
        record = self._records.get(copy_id)
        if record is None:
            check_copy_id(copy_id)
            record = CopyRecord(copy, CopyState.PENDING)
            self._save(record)
        else:
            record = dataclasses.replace(record, assignment=copy)
        ran = record.state in (CopyState.STARTING, CopyState.HEALTHY, CopyState.UNHEALTHY)
        if ran and not adopt:
            # Its container ended while no agent was there to see it.
            record = dataclasses.replace(record, restarts=record.restarts + 1)
        # Nobody reaches a container with an address of a network that the node no longer has.
        adopt = adopt and ran and self._launcher.is_here(record.address)
        if adopt:
            self._images.remember(record)
        life = CopyLife(record, self._services)
        self._lives[copy_id] = life
        self._tasks[copy_id] = asyncio.create_task(self._live(life, adopt=adopt))

    async def _live(self, life: CopyLife, *, adopt: bool) -> None:
        try:
            await life.run(adopt=adopt)
        except Exception:
            # The record stays as it is, so the next plan begins this copy again.
            log.exception("the life of a copy broke off", copy_id=life.copy_id)

    def _spawn_stop(self, copy_id: str, work: Coroutine[Any, Any, None]) -> None:
        async def stop() -> None:
            try:
                await work
            except (ZeropullError, OSError) as error:
                log.warning("stop will be tried again", copy_id=copy_id, reason=str(error))
            finally:
                self._stopping.pop(copy_id, None)
                self._report_now.set()

        self._stopping[copy_id] = asyncio.create_task(stop())

    async def _stop(self, copy_id: str, assignment: NodeAssignment) -> None:
        task = self._tasks.pop(copy_id, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._lives.pop(copy_id, None)
        wanted = next((each for each in assignment.copies if each.copy_id == copy_id), None)
        record = self._records.get(copy_id)
        if record is None:
            assert wanted is not None
            self._save(CopyRecord(wanted, CopyState.STOPPED))
            return
        self._save(dataclasses.replace(record, state=CopyState.STOPPING, next_start_s=None))
        grace_s = (wanted or record.assignment).stop_grace_s
        await self._launcher.tear_down(record, grace_s=grace_s)
        self._save(
            dataclasses.replace(
                record, state=CopyState.STOPPED, next_start_s=None, address="", models=()
            )
        )
        await self._models.evict()
        self._plan_now.set()

    def _replace_users_of(self, manifest_digest: str, reason: str) -> None:
        for copy_id, life in self._lives.items():
            task = self._tasks.get(copy_id)
            if life.record.assignment.image == manifest_digest and task and not task.done():
                life.replace_container(reason)

    # ------------------------------------------------------------------ what others ask us

    def _save(self, record: CopyRecord) -> None:
        before = self._records.get(record.copy_id)
        self._records[record.copy_id] = record
        self._records_on_disk.save_copy(record)
        self._launches.note(record.copy_id, is_launching=record.state in _LAUNCHING)
        self._starts.note(record.copy_id, is_launching=record.state is CopyState.STARTING)
        if before is None or _reported(before) != _reported(record):
            self._report_now.set()

    def _image_of(self, manifest_digest: str) -> ImageAssignment | None:
        images = self._assignment.images if self._assignment else ()
        return next((each for each in images if each.manifest_digest == manifest_digest), None)

    def _addresses_of_others(self, copy_id: str) -> set[str]:
        return {
            record.address
            for record in self._records.values()
            if record.address and record.copy_id != copy_id
        }

    async def _persist(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Repeat `call` with backoff until it succeeds."""
        failures = 0
        while True:
            try:
                return await call()
            except ZeropullError as error:
                failures += 1
                wait_s = RETRY.after(failures)
                log.warning("trying again", reason=str(error), wait_s=wait_s)
                await asyncio.sleep(wait_s)


def _reported(record: CopyRecord) -> CopyReport:
    return report_of(record)


async def run_agent(config: NodeConfig) -> None:
    """The whole agent until cancelled: what the daemon runs."""
    socket = Path(config.control_socket)
    control = ControlClient(socket, config.node_token, instance_id=config.instance_id)
    async with control, NodeAgent(config, control) as agent:
        await agent.run()
