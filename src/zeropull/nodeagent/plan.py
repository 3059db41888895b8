"""What a node should do next: assignment and observed state in, actions with their reasons out.

Pure. It is asked again after every change, so it names only what is not under way already.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from zeropull.controlapi.messages import CopyState, NodeAssignment
from zeropull.nodeagent.records import CopyRecord

RUN = "run"


class ActionKind(StrEnum):
    START = "start"  # make it run, from wherever it stands
    ADOPT = "adopt"  # its container runs: go on watching it
    STOP = "stop"  # end it and leave nothing behind
    FORGET = "forget"  # it is gone: drop its record
    REMOVE_STRAY = "remove_stray"  # a container that no record and no assignment knows


@dataclass(frozen=True, slots=True)
class Action:
    kind: ActionKind
    copy_id: str
    reason: str


def plan_node(
    assignment: NodeAssignment,
    records: Mapping[str, CopyRecord],
    running: Collection[str],
    containers: Collection[str],
    living: Collection[str],
    stopping: Collection[str],
) -> list[Action]:
    """`running`: copies whose container's process lives; `containers`: copies that have a container
    at all; `living` and `stopping`: copies that a task of the agent cares for already."""
    wanted = {copy.copy_id: copy for copy in assignment.copies}
    actions: list[Action] = []
    for copy_id, copy in wanted.items():
        if copy_id in stopping:
            continue
        record = records.get(copy_id)
        gone = record is not None and record.state is CopyState.STOPPED
        if copy.desired != RUN:
            if not gone:
                actions.append(Action(ActionKind.STOP, copy_id, "the assignment says stop"))
        elif copy_id in living or gone or (record and record.state is CopyState.FAILED):
            continue
        elif record is not None and record.state is CopyState.STOPPING:
            actions.append(Action(ActionKind.STOP, copy_id, "its stop was not finished"))
        elif copy_id in running and record is not None:
            actions.append(Action(ActionKind.ADOPT, copy_id, "its container runs already"))
        else:
            reason = "newly assigned" if record is None else "its start was not finished"
            actions.append(Action(ActionKind.START, copy_id, reason))
    for copy_id, record in records.items():
        if copy_id in wanted or copy_id in stopping:
            continue
        if record.state is CopyState.STOPPED:
            actions.append(Action(ActionKind.FORGET, copy_id, "gone and no longer assigned"))
        else:
            actions.append(Action(ActionKind.STOP, copy_id, "no longer assigned"))
    for copy_id in containers:
        if copy_id not in wanted and copy_id not in records and copy_id not in stopping:
            actions.append(Action(ActionKind.REMOVE_STRAY, copy_id, "nobody asked for it"))
    return actions
