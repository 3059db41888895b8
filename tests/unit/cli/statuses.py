"""Documents of the admin API for tests, with every text as hostile as a test wants it."""

from __future__ import annotations

from zeropull.admin.messages import (
    CacheStatus,
    ComponentState,
    CopyStatus,
    DamagedState,
    EndpointState,
    InstanceStatus,
    Status,
    TargetStatus,
    Timeline,
)
from zeropull.controlapi.messages import CopyState
from zeropull.resources.components import ComponentStatus
from zeropull.resources.endpoints import EndpointStatus
from zeropull.resources.instances import InstanceState, TimelineRecord
from zeropull.resources.stages import Stage, StageRecord

# What Rich takes for markup, an emoji and a link; what a terminal and a browser obey.
HOSTILE = (
    "no such file [/opt/ml/model]",
    "[bold]loud[/bold] [red]",
    "[link=http://198.18.0.1/]here[/link]",
    "[@click=app.bell]x[/]",
    "half a tag [",
    r"an escaped one \[/x]",
    ":warning: all is well",
    "\x1b]0;title\x07\x1b[31mred\x1b[0m",
    "<script>alert(1)</script>",
)


def status(text: str) -> Status:
    """One endpoint on which every text is `text`."""
    copy = CopyStatus(text, text, CopyState.FAILED, 3, text)
    instance = InstanceStatus(
        text, text, text, InstanceState.RUNNING, reason=text, failure=text, copies=(copy,)
    )
    decided = TargetStatus(text, 1, 4, text, 0.0, 2, text, None, text)
    undecided = TargetStatus(text, 1, 4, "", 0.0, None, None, None, text)
    endpoint = EndpointState(
        name=text,
        account="000000000000",
        status=EndpointStatus.FAILED,
        failure_reason=text,
        image_cache=CacheStatus(7, 1, 10, text),
        scaling=(decided, undecided),
        components=(ComponentState(text, ComponentStatus.FAILED, 2, 0, text),),
        instances=(instance,),
    )
    damaged = (DamagedState(text, text, text, 1),)
    return Status("/state", "/run", (endpoint,), (), damaged, disk_low=text)


def timeline(text: str) -> Timeline:
    """Two launches, one ready, on which every text is `text`."""
    stages = (
        StageRecord(Stage.PROVISION, 10.0, 11.0, detail=text),
        StageRecord(Stage.IMAGE, 11.0, 13.5, {"registry": 5, text: 6}, 8, 9, path=text, detail=""),
        StageRecord(Stage.START, 13.5),
    )
    ready, running = (
        TimelineRecord(
            text, text, "000000000000", "uid", text, text, "d", text, 10.0,
            reason=text, ready_s=ready_s, first_response_s=ready_s, stages=stages,
        )
        for ready_s in (14.0, None)
    )  # fmt: skip
    return Timeline(text, "uid", (ready, running))
