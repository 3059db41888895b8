"""Whether a failed copy is tried again, and when."""

from __future__ import annotations

import pytest

from zeropull.controlapi.messages import CopyAssignment, CopyState, FailureKind
from zeropull.nodeagent.copies.retrying import RESTART, Retry, plan_retry
from zeropull.nodeagent.failures import Failure
from zeropull.nodeagent.records import CopyRecord

STORE_AWAY = Failure(FailureKind.MODEL_UNREACHABLE, "the store is away", retry=True)
REGISTRY_AWAY = Failure(FailureKind.REGISTRY_UNREACHABLE, "the registry is away", retry=True)
EXITED = Failure(FailureKind.CONTAINER_EXITED, "it exited", retry=True)
UNFORESEEN = Failure(FailureKind.INTERNAL, "PanicException: oh", retry=True, foreseen=False)


def record(**facts: float) -> CopyRecord:
    assignment = CopyAssignment(
        "a", "sha256:" + "0" * 64, health_timeout_s=100.0, model_download_timeout_s=600.0
    )
    return CopyRecord(assignment, CopyState.PREPARING, **facts)  # type: ignore[arg-type]


def planned(
    failure: Failure,
    *,
    preparing_s: float = 0.0,
    starting_s: float = 0.0,
    served_s: float = 0.0,
    **facts: float,
) -> Retry:
    return plan_retry(
        record(**facts),
        failure,
        preparing_s=preparing_s,
        starting_s=starting_s,
        served_s=served_s,
    )


def test_backoff_doubles_up_to_a_minute() -> None:
    assert [RESTART.after(count) for count in (1, 2, 3, 4, 20, 2000)] == [1, 2, 4, 8, 60, 60]


def test_a_store_that_hung_for_two_minutes_is_asked_again() -> None:
    assert planned(STORE_AWAY, preparing_s=120.0).wait_s == 1.0


@pytest.mark.parametrize(("failure", "budget_s"), [(STORE_AWAY, 600.0), (REGISTRY_AWAY, 100.0)])
def test_the_variants_time_outs_bound_all_attempts_together(
    failure: Failure, budget_s: float
) -> None:
    assert planned(failure, preparing_s=budget_s - 1.5).wait_s == 1.0
    assert planned(failure, preparing_s=budget_s - 1.0).wait_s is None


def test_the_preparation_is_tried_again_within_ten_seconds() -> None:
    assert planned(STORE_AWAY, preparing_s=300.0, failures_in_a_row=9).wait_s == 10.0


def test_a_first_start_is_given_up_after_the_health_time_out() -> None:
    assert planned(EXITED, starting_s=98.0, first_started_s=1.0).wait_s == 1.0
    assert planned(EXITED, starting_s=99.0, first_started_s=1.0).wait_s is None


def test_a_copy_that_was_healthy_once_is_never_given_up() -> None:
    again = planned(
        EXITED, starting_s=9999.0, first_started_s=1.0, healthy_at_s=2.0, failures_in_a_row=50
    )
    assert again.wait_s == 60.0


def test_a_copy_that_served_long_begins_with_the_shortest_wait() -> None:
    again = planned(EXITED, served_s=301.0, healthy_at_s=2.0, failures_in_a_row=50)
    assert (again.wait_s, again.failures_in_a_row) == (1.0, 1)


def test_what_nobody_foresaw_has_five_attempts_and_says_so() -> None:
    assert planned(UNFORESEEN, failures_in_a_row=3).wait_s == 8.0
    last = planned(UNFORESEEN, failures_in_a_row=4)
    assert last.wait_s is None
    assert last.message == "PanicException: oh (given up after 5 attempts)"


def test_a_final_failure_is_not_tried_again() -> None:
    assert planned(Failure(FailureKind.IMAGE_NOT_FOUND, "no", retry=False)).wait_s is None
