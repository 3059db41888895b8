"""Whether a copy that failed is tried again, and when. Pure.

The variant's time-outs bound the whole, over all attempts: what concerns the model has
ModelDataDownloadTimeoutInSeconds, what concerns the image and the container's start has
ContainerStartupHealthCheckTimeoutInSeconds. An error that nobody foresaw comes again, most likely,
so it has a few attempts only.
"""

from __future__ import annotations

from dataclasses import dataclass

from zeropull.backoff import Backoff
from zeropull.controlapi.messages import FailureKind
from zeropull.nodeagent.failures import Failure
from zeropull.nodeagent.records import CopyRecord

RESTART = Backoff(first_s=1.0, limit_s=60.0)  # of a container that ended or never was healthy
PREPARE = Backoff(first_s=1.0, limit_s=10.0)  # a registry that is back is asked again soon
BACKOFF_FORGOTTEN_AFTER_S = 300.0  # served this long: the next failure starts over at the first
START_ATTEMPTS = 3  # of a container that runc refuses
UNFORESEEN_ATTEMPTS = 5  # 15 s with their backoff

_OF_THE_MODEL = frozenset(
    {
        FailureKind.MODEL_NOT_FOUND,
        FailureKind.MODEL_UNREACHABLE,
        FailureKind.MODEL_INVALID,
        FailureKind.MODEL_TIMEOUT,
    }
)


@dataclass(frozen=True, slots=True)
class Retry:
    """What follows a failure. `wait_s` None: nothing, the copy has failed for good. `message` is
    the failure's, with what ended the attempts."""

    wait_s: float | None
    failures_in_a_row: int
    message: str


def plan_retry(
    record: CopyRecord,
    failure: Failure,
    *,
    preparing_s: float,
    starting_s: float,
    served_s: float,
) -> Retry:
    """`preparing_s` and `starting_s`: since the first attempt of the preparation, and since the
    first start of a container; `served_s`: how long the copy was healthy before it failed."""
    in_a_row = 1 if served_s > BACKOFF_FORGOTTEN_AFTER_S else record.failures_in_a_row + 1
    if not failure.retry:
        return Retry(None, in_a_row, failure.message)
    attempts = _attempts(failure)
    if attempts is not None and in_a_row >= attempts:
        return Retry(None, in_a_row, f"{failure.message} (given up after {in_a_row} attempts)")
    if record.healthy_at_s is not None:
        return Retry(RESTART.after(in_a_row), in_a_row, failure.message)
    if record.first_started_s is not None:
        wait_s = RESTART.after(in_a_row)
        passed_s, budget_s = starting_s, record.assignment.health_timeout_s
    else:
        wait_s = PREPARE.after(in_a_row)
        passed_s, budget_s = preparing_s, preparation_budget_s(record, failure.kind)
    if passed_s + wait_s >= budget_s:
        return Retry(None, in_a_row, failure.message)
    return Retry(wait_s, in_a_row, failure.message)


def preparation_budget_s(record: CopyRecord, kind: FailureKind) -> float:
    """How long all attempts together may take, by what they fail with."""
    if kind in _OF_THE_MODEL:
        return record.assignment.model_download_timeout_s
    return record.assignment.health_timeout_s


def _attempts(failure: Failure) -> int | None:
    """How often in a row the same may be tried; None: as long as the time-outs allow."""
    if not failure.foreseen:
        return UNFORESEEN_ATTEMPTS
    return START_ATTEMPTS if failure.kind is FailureKind.CONTAINER_START else None
