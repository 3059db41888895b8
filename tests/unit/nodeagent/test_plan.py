"""The plan: what is assigned against what is there."""

from __future__ import annotations

import pytest

from zeropull.controlapi.messages import CopyAssignment, CopyState, NodeAssignment
from zeropull.nodeagent.plan import ActionKind, plan_node
from zeropull.nodeagent.records import CopyRecord


def copy(copy_id: str = "a", desired: str = "run") -> CopyAssignment:
    return CopyAssignment(copy_id, "sha256:" + "0" * 64, desired=desired, health_timeout_s=100.0)


def record(state: CopyState, copy_id: str = "a") -> CopyRecord:
    return CopyRecord(copy(copy_id), state)


def planned(
    *copies: CopyAssignment,
    records: tuple[CopyRecord, ...] = (),
    running: tuple[str, ...] = (),
    containers: tuple[str, ...] = (),
    living: tuple[str, ...] = (),
    stopping: tuple[str, ...] = (),
) -> list[tuple[ActionKind, str]]:
    actions = plan_node(
        NodeAssignment(1, "i-1", copies=copies),
        {each.copy_id: each for each in records},
        running,
        containers,
        living,
        stopping,
    )
    assert all(action.reason for action in actions)
    return [(action.kind, action.copy_id) for action in actions]


def test_a_new_copy_is_started_once() -> None:
    assert planned(copy()) == [(ActionKind.START, "a")]
    assert planned(copy(), records=(record(CopyState.PREPARING),), living=("a",)) == []


def test_a_running_container_is_adopted_after_a_restart() -> None:
    known = (record(CopyState.HEALTHY),)
    assert planned(copy(), records=known, running=("a",)) == [(ActionKind.ADOPT, "a")]
    assert planned(copy(), records=known) == [(ActionKind.START, "a")]


def test_a_failed_copy_is_left_alone_until_it_is_taken_away() -> None:
    failed = (record(CopyState.FAILED),)
    assert planned(copy(), records=failed) == []
    assert planned(records=failed) == [(ActionKind.STOP, "a")]


@pytest.mark.parametrize("state", [CopyState.HEALTHY, CopyState.BACKOFF, CopyState.STOPPING])
def test_stop_ends_a_copy_in_any_state_and_is_not_begun_twice(state: CopyState) -> None:
    known = (record(state),)
    assert planned(copy(desired="stop"), records=known) == [(ActionKind.STOP, "a")]
    assert planned(copy(desired="stop"), records=known, stopping=("a",)) == []
    assert planned(records=known) == [(ActionKind.STOP, "a")]


def test_a_stopped_copy_is_forgotten_once_it_is_assigned_no_more() -> None:
    gone = (record(CopyState.STOPPED),)
    assert planned(copy(desired="stop"), records=gone) == []
    assert planned(records=gone) == [(ActionKind.FORGET, "a")]


def test_an_unfinished_stop_is_finished_after_a_restart() -> None:
    assert planned(copy(), records=(record(CopyState.STOPPING),), running=("a",)) == [
        (ActionKind.STOP, "a")
    ]


def test_a_container_that_nobody_knows_is_removed() -> None:
    assert planned(containers=("x",)) == [(ActionKind.REMOVE_STRAY, "x")]
