"""Whatever goes wrong, a copy comes to an end with a reason, and can be taken away."""

from __future__ import annotations

import os
import signal

import pytest

from tests.integration.nodeagent.conftest import Fleet, assignment_of, copy_of
from zeropull.controlapi.messages import CopyState, ImageAssignment, ModelArtifact, StoreAccess
from zeropull.providers.local.processes import AGENT, daemon_pid


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("s3://models/key", "store.invalid:9000"),
        ("s3://models/key", "://"),
        ("s3://models/nu\0l", "http://198.18.255.1:9000"),
        ("s3://models/" + "k" * 5000, "http://127.0.0.1:1"),
    ],
)
async def test_a_model_that_no_client_can_read_fails_with_a_reason_and_can_be_stopped(
    fleet: Fleet, server_image: ImageAssignment, url: str, endpoint: str
) -> None:
    node = await fleet.launch()
    artifact = ModelArtifact(url, access=StoreAccess(endpoint=endpoint))
    # Where the store might answer later it is asked until the time-out has passed.
    copy = copy_of(server_image, "copy-x", artifacts=(artifact,), model_download_timeout_s=20.0)
    node.assign(assignment_of(server_image, copy))
    failed = await node.until_copy("copy-x", CopyState.FAILED, timeout_s=90.0)
    assert failed.message
    node.assign(assignment_of(server_image))
    await node.until(lambda report: not report.copies)


async def test_deletion_works_while_a_store_hangs(
    fleet: Fleet, server_image: ImageAssignment
) -> None:
    node = await fleet.launch()
    artifact = ModelArtifact("s3://models/key", access=StoreAccess("http://198.18.255.1:9000"))
    copy = copy_of(server_image, "copy-h", artifacts=(artifact,))
    node.assign(assignment_of(server_image, copy))
    await node.until_copy("copy-h", CopyState.PREPARING, CopyState.BACKOFF)
    node.assign(assignment_of(server_image))
    await node.until(lambda report: not report.copies)


async def test_an_agent_that_was_stopped_reports_again_and_its_containers_run_on(
    fleet: Fleet, server_image: ImageAssignment
) -> None:
    node = await fleet.launch()
    node.assign(assignment_of(server_image, copy_of(server_image, "copy-s")))
    before = await node.until_copy("copy-s", CopyState.HEALTHY)
    pid = daemon_pid(node.names, AGENT) or 0
    os.kill(pid, signal.SIGSTOP)
    try:
        stopped = node.report
        # Longer than an interval of reports: the agent is late when it goes on.
        with pytest.raises(AssertionError):
            await node.until(lambda report: report is not stopped, timeout_s=12.0)
    finally:
        os.kill(pid, signal.SIGCONT)
    again = await node.until(lambda report: report is not stopped)
    assert again.copies[0].state is CopyState.HEALTHY
    assert (again.copies[0].restarts, again.copies[0].healthy_at_s) == (0, before.healthy_at_s)
