"""What the other processes should see now and what they said last, in memory.

The reconcilers publish into it and read reports out of it; `controlapi.server` serves it. Nothing
here must survive a restart: everything published follows from the store, and every report is a
whole state that comes again within seconds.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from zeropull.controlapi.messages import (
    CopyReading,
    GatewayReport,
    NodeAssignment,
    NodeReport,
    Routes,
)

GATEWAY_REMEMBERED_S = 3600.0  # after its last report; decisions ignore it much sooner
MAX_READINGS = 100_000  # bounds the readings kept for a consumer that is not there (yet)

Report = TypeVar("Report")
Message = TypeVar("Message", NodeAssignment, Routes)


@dataclass(frozen=True, slots=True)
class Received(Generic[Report]):
    """A report and when it came in: by the control plane's clock, and by its monotonic one, which
    nobody sets. Ages are measured by the latter."""

    report: Report
    received_s: float
    heard_s: float


@dataclass(slots=True)
class Topic(Generic[Message]):
    """The newest version of one watched message and those who wait for the next."""

    message: Message | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Exchange:
    """The meeting point of reconcilers, nodes and gateways."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.epoch = secrets.token_hex(8)  # versions mean nothing beyond it
        self._monotonic = monotonic
        self.assignments: dict[str, Topic[NodeAssignment]] = {}
        self.routes: Topic[Routes] = Topic()
        self.nodes: dict[str, Received[NodeReport]] = {}
        self.gateways: dict[str, Received[GatewayReport]] = {}
        self.reported = asyncio.Event()  # set by a report that changes something
        self.held = asyncio.Event()  # set when requests begin to wait in another queue
        self._told_by: set[str] = set()  # nodes that have said something new
        self._gateways_told = False
        self._has_progressed = False
        self._readings: list[CopyReading] = []
        self._halves: dict[str, tuple[CopyReading, ...]] = {}

    def publish_assignment(self, assignment: NodeAssignment, now_s: float) -> int:
        """Make it the node's newest assignment; returns its version, the old one if it is equal."""
        topic = self.assignments.setdefault(assignment.instance_id, Topic())
        topic.message, version = self._versioned(topic.message, assignment, now_s)
        _wake(topic)
        return version

    def publish_routes(self, routes: Routes, now_s: float) -> int:
        """Make these the newest routes; returns their version, the old one if they are equal."""
        self.routes.message, version = self._versioned(self.routes.message, routes, now_s)
        _wake(self.routes)
        return version

    def told(self, message: NodeAssignment | Routes, version: int, epoch: str) -> bool:
        """Whether who names this version and epoch has the message, or a newer one."""
        return version >= message.version and epoch in (self.epoch, "")

    def _versioned(self, before: Message | None, new: Message, now_s: float) -> tuple[Message, int]:
        if (
            before is not None
            and dataclasses.replace(new, version=before.version, epoch=self.epoch) == before
        ):
            return before, before.version
        # Milliseconds of the clock: nodes and gateways of 0.1.0 know no epoch, so that versions
        # must grow over a restart of the control plane.
        version = max(int(now_s * 1000), (before.version + 1) if before else 1)
        return dataclasses.replace(new, version=version, epoch=self.epoch), version

    def forget_node(self, instance_id: str) -> None:
        """The instance is gone: whoever still watches gets no answer any more."""
        self.assignments.pop(instance_id, None)
        self.nodes.pop(instance_id, None)
        self._told_by.add(instance_id)

    def take_node_report(self, report: NodeReport, now_s: float) -> None:
        before = self.nodes.get(report.instance_id)
        self.nodes[report.instance_id] = Received(report, now_s, self._monotonic())
        if before is None or _state_of(before.report) != _state_of(report):
            self._told_by.add(report.instance_id)
            self.reported.set()

    def take_changed_nodes(self) -> set[str]:
        """Instances whose nodes have said something new, or were forgotten, since the last call."""
        taken, self._told_by = self._told_by, set()
        return taken

    def note_progress(self) -> None:
        """Something that was under way beside all reports has come to an end."""
        self._has_progressed = True
        self.reported.set()

    def take_progress(self) -> bool:
        """Whether something has since the last call."""
        taken, self._has_progressed = self._has_progressed, False
        return taken

    def take_gateways_changed(self) -> bool:
        """Whether a gateway has said something new since the last call."""
        taken, self._gateways_told = self._gateways_told, False
        return taken

    def take_gateway_report(self, report: GatewayReport, now_s: float) -> None:
        before = self.gateways.get(report.gateway_id)
        self._readings.extend(report.readings)
        del self._readings[:-MAX_READINGS]
        if report.leaving:
            self._halves.pop(report.gateway_id, None)
            self.gateways.pop(report.gateway_id, None)
            self._gateways_told = True
            self.reported.set()
            return
        self._forget_silent_gateways(now_s)
        self._halves[report.gateway_id] = report.halves
        kept = dataclasses.replace(report, readings=(), halves=())
        self.gateways[report.gateway_id] = Received(kept, now_s, self._monotonic())
        # Half a second's report only says how much runs, which may change all the time.
        counts = bool(report.readings)
        if before is None or _gateway_state(before.report, counts) != _gateway_state(kept, counts):
            self._gateways_told = True
            self.reported.set()
        if _waiting_queues(kept) - (_waiting_queues(before.report) if before else set()):
            self.held.set()

    def _forget_silent_gateways(self, now_s: float) -> None:
        """Each process of a gateway has an ID of its own: those that were killed add up."""
        for gateway_id, received in list(self.gateways.items()):
            if now_s - received.received_s > GATEWAY_REMEMBERED_S:
                del self.gateways[gateway_id]

    def take_readings(self) -> list[CopyReading]:
        """Every reading since the last call; each is handed out once."""
        taken, self._readings = self._readings, []
        return taken

    def take_halves(self) -> list[CopyReading]:
        """What every gateway saw in the second in progress; each is handed out once."""
        taken = [half for halves in self._halves.values() for half in halves]
        self._halves.clear()
        return taken

    async def watch_assignment(
        self, instance_id: str, since: int, wait_s: float, epoch: str = ""
    ) -> NodeAssignment | None:
        """The newest assignment above `since`, None when there is none within `wait_s`. One of
        another epoch than the given one is newer whatever its version."""
        topic = self.assignments.setdefault(instance_id, Topic())
        return await self._watch(topic, since, wait_s, epoch)

    async def watch_routes(self, since: int, wait_s: float, epoch: str = "") -> Routes | None:
        """The newest routes above `since`, by the same rules."""
        return await self._watch(self.routes, since, wait_s, epoch)

    async def _watch(
        self, topic: Topic[Message], since: int, wait_s: float, epoch: str
    ) -> Message | None:
        try:
            async with asyncio.timeout(wait_s):
                while True:
                    if topic.message is not None and not self.told(topic.message, since, epoch):
                        return topic.message
                    await topic.changed.wait()
        except TimeoutError:
            return None


def _wake(topic: Topic[NodeAssignment] | Topic[Routes]) -> None:
    topic.changed.set()
    topic.changed = asyncio.Event()


def _state_of(report: NodeReport) -> NodeReport:
    return dataclasses.replace(
        report, sent_at_s=0.0, counters={}, utilization={}, labelled_counters=()
    )


def _gateway_state(report: GatewayReport, counts: bool) -> tuple[object, ...]:
    return (
        report.routes_version,
        report.in_flight if counts else None,
        report.routed_at_s,
        report.first_response_s,
    )


def _waiting_queues(report: GatewayReport) -> set[tuple[str | None, ...]]:
    named = {(each.account, each.endpoint, each.variant, each.component) for each in report.waiting}
    return named | {(name,) for name, count in report.queued.items() if count}
