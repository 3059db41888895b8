"""The node agent: watches its assignment, makes the node so, and reports what is there.

Observe, plan (`nodeagent.plan`, pure), act. Every copy has a task of its own; the loop only starts
and ends those tasks. Containers outlive the agent: leaving the agent stops nothing, and the next
one adopts what runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from zeropull.backoff import Backoff
from zeropull.containerd.client import ContainerdClient
from zeropull.controlapi.client import ControlClient
from zeropull.controlapi.messages import CopyState, ImageAssignment, NodeAssignment, NodeReport
from zeropull.errors import ZeropullError
from zeropull.layers.pull import clean_layer_store
from zeropull.linux.tracefs import remove_instances
from zeropull.nodeagent.containers import logs
from zeropull.nodeagent.containers.containers import Containers
from zeropull.nodeagent.containers.writable_layers import WritableLayers
from zeropull.nodeagent.copies.launching import Launcher
from zeropull.nodeagent.copies.life import report_of
from zeropull.nodeagent.copies.node_copies import NodeCopies
from zeropull.nodeagent.copies.preparing import Preparation
from zeropull.nodeagent.disk import NodeDisk
from zeropull.nodeagent.images.catalog import Catalog
from zeropull.nodeagent.images.node_images import NodeImages
from zeropull.nodeagent.images.reports import ImageReports
from zeropull.nodeagent.images.scrubbing import Scrubber, ScrubPace
from zeropull.nodeagent.images.start_profiles import StartProfiles
from zeropull.nodeagent.link_share import LinkShare
from zeropull.nodeagent.models import NodeModels
from zeropull.nodeagent.plan import plan_node
from zeropull.nodeagent.quiet_times import LaunchesUnderWay
from zeropull.nodeagent.readings import Readings, agent_counters, image_counters
from zeropull.nodeagent.records import AgentRecords
from zeropull.resources.node import NodeConfig
from zeropull.telemetry import get_logger

REPORT_INTERVAL_S = 5.0
PLAN_INTERVAL_S = 5.0  # also without any news: what failed to be stopped is tried again
ROTATE_INTERVAL_S = 2.0
RETRY = Backoff(first_s=0.2, limit_s=5.0)  # of calls to the control plane, and of broken loops
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
        self._assignment = self._records_on_disk.load_assignment()
        self._assignment_changed = asyncio.Condition()
        self._plan_now = asyncio.Event()
        self._report_now = asyncio.Event()
        self._acted_on = ("", 0)  # epoch and version of an assignment
        self._launches = launches = LaunchesUnderWay()
        starts = LaunchesUnderWay()  # of containers: the end of each launch
        self._copies = NodeCopies(
            self._records_on_disk,
            launches,
            starts,
            changed=self._report_now.set,
            replan=self._plan_now.set,
            clock=clock,
        )
        self._catalog = Catalog(config.catalog_dir, config.layers_dir, self._records_on_disk)
        disk = NodeDisk(config, lambda: self._images.layers_in_use(), self._catalog.forget)
        link = LinkShare(config.model_link_share)
        self._images = NodeImages(
            config,
            self._client,
            self._catalog,
            self._records_on_disk,
            lambda: self._assignment,
            self._assignment_changed,
            disk,
            link,
        )
        self._models = NodeModels(
            config.models_dir, disk=disk, link=link, in_use=self._copies.models_in_use
        )
        self._containers = Containers(self._client, runc=config.runc)
        self._scrubber = Scrubber(
            self._catalog,
            self._images,
            launches,
            self._copies.replace_users_of,
            pace=ScrubPace(config.scrub_interval_s, config.scrub_bytes_per_s),
            suspects=lambda: self._assignment.suspect_layers if self._assignment else (),
        )
        self._profiles = StartProfiles(
            config,
            self._catalog,
            lambda: self._assignment,
            starts,
            self._scrubber.condemn,
            self._containers.layers_of,
        )
        self._launcher = Launcher(
            config, self._containers, self._profiles, self._copies.addresses_of_others
        )
        preparation = Preparation(self._images, self._models, self._profiles, link, self._image_of)
        self._copies.serve_with(preparation, self._launcher, self._containers, self._models)
        self._image_reports = ImageReports(self._catalog, self._images)
        self._readings = Readings(config, disk)
        self._writable_layers = WritableLayers(
            Path(config.disk_dir),
            config.copy_disk_bytes or config.disk_bytes,
            config.disk_reserve_bytes,
            self._copies.writable_layers,
            self._copies.end_full,
        )

    async def __aenter__(self) -> Self:
        # A pull that died with the agent before this one: its layers are pulled anew.
        await asyncio.to_thread(clean_layer_store, self._config.layers_dir)
        await asyncio.to_thread(remove_instances, self._config.trace_prefix)
        await self._client.__aenter__()
        try:
            async with asyncio.timeout(CONTAINERD_WAIT_S):
                await self._persist(self._client.version)
                await self._client.namespaces.ensure(self._client.namespace)
            records = self._copies.records
            have = {name: each.address for name, each in records.items() if each.address}
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
        await self._copies.close()
        await self._profiles.close()
        await self._images.close()
        await self._models.close()
        await self._client.__aexit__(kind, error, trace)

    async def run(self) -> None:
        """Watch, act and report until cancelled."""
        async with asyncio.TaskGroup() as group:
            for work in (
                self._watch,
                self._act,
                self._report,
                self._rotate_logs,
                self._scrubber.run,
                self._readings.run,
                self._writable_layers.run,
            ):
                group.create_task(_lasting(work))

    async def _watch(self) -> None:
        since, epoch = 0, ""
        while True:
            watch = functools.partial(self._control.watch_assignment, since, epoch)
            answer = await self._persist(watch)
            if answer is None:
                continue
            since, epoch = answer.version, answer.epoch
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
        copies = self._copies
        actions = plan_node(
            assignment, copies.records, running, known, copies.living, copies.stopping
        )
        for action in actions:
            log.info("acting", action=action.kind, copy_id=action.copy_id, reason=action.reason)
            try:
                copies.begin(action, assignment)
            except (ZeropullError, OSError) as error:
                # One copy that cannot be begun must not keep the others from it.
                log.error("action failed", copy_id=action.copy_id, reason=str(error))
        self._image_reports.refresh(assignment)
        await self._release_unused(assignment)
        if self._acted_on != (assignment.epoch, assignment.version):
            self._acted_on = (assignment.epoch, assignment.version)
            self._report_now.set()

    async def _release_unused(self, assignment: NodeAssignment) -> None:
        """Let go of images that nobody is to run any more, so that volumes can be detached."""
        wanted = {image.manifest_digest for image in assignment.images}
        wanted |= {
            record.assignment.image
            for record in self._copies.records.values()
            if record.state is not CopyState.STOPPED
        }
        await self._images.release_unused(wanted)
        await asyncio.to_thread(self._catalog.prune, assignment.volumes)
        await self._leave_broken_layers()
        await self._images.arriving.keep_only(assignment.volumes)
        if not self._launches.are_under_way:
            await self._images.arriving.bring_rest()

    async def _leave_broken_layers(self) -> None:
        """Copies on layers whose receiver died, with nobody to hold their readers, get a new
        container over new mounts."""
        broken = await self._images.arriving.newly_broken()
        for image in list(self._images.ready.values()) if broken else ():
            lost = broken & set(image.chain_ids)
            if lost:
                why = f"the receiver ended before layer {min(lost)} had arrived"
                self._images.spoil(image.manifest_digest)
                self._copies.replace_users_of(image.manifest_digest, why)

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
            copy_ids = frozenset(self._copies.records)
            await asyncio.to_thread(logs.keep_bounded, self._config.logs_dir, copy_ids)

    def report(self) -> NodeReport:
        """The node's whole state now."""
        return NodeReport(
            instance_id=self._config.instance_id,
            assignment_version=self._acted_on[1],
            assignment_epoch=self._acted_on[0],
            sent_at_s=self._clock(),
            agent_started_s=self._started_s,
            copies=tuple(report_of(record) for _, record in sorted(self._copies.records.items())),
            images=self._image_reports.reports(self._assignment),
            counters={
                **self._readings.plugin_counters,
                **agent_counters(
                    registry_bytes=self._images.registry_bytes,
                    model_store_bytes=self._models.fetched_bytes,
                    verification_failures=self._catalog.failures,
                ),
            },
            labelled_counters=image_counters(self._images.paths, self._images.fallbacks),
            utilization=self._readings.utilization,
        )

    def _image_of(self, manifest_digest: str) -> ImageAssignment | None:
        images = self._assignment.images if self._assignment else ()
        return next((each for each in images if each.manifest_digest == manifest_digest), None)

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


async def _lasting(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run one of the agent's loops for ever: what it did not foresee (a full disk, say) must not
    end the others, which look after running copies."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("a loop of the agent broke off and begins again")
            await asyncio.sleep(RETRY.limit_s)


async def run_agent(config: NodeConfig) -> None:
    """The whole agent until cancelled: what the daemon runs."""
    socket = Path(config.control_socket)
    control = ControlClient(socket, config.node_token, instance_id=config.instance_id)
    async with control, NodeAgent(config, control) as agent:
        await agent.run()
