from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from tests.unit.cli.statuses import HOSTILE, timeline
from zeropull.admin.messages import Timeline
from zeropull.cli.timeline import draw_timeline, launch_seconds, stage_note, stage_seconds
from zeropull.resources.stages import Stage, StageRecord

NOW_S = 20.0


def drawn(data: Timeline) -> str:
    out = io.StringIO()
    console = Console(file=out, width=1000, force_terminal=True, color_system=None)
    draw_timeline(data, console, NOW_S)
    return out.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_what_comes_from_outside_is_drawn_as_it_is(text: str) -> None:
    expected = text.replace("\x1b", "?").replace("\x07", "?")
    written = drawn(timeline(text))
    # Copy, instance, type, variant, reason, the first stage's detail and a source of bytes.
    assert written.count(expected) == 2 * 7
    assert not any(control in written for control in ("\x1b]", "\x1b[31m", "\x07"))


def test_a_launch_that_is_ready_lasts_until_then_and_another_until_now() -> None:
    ready, running = timeline("x").launches
    assert launch_seconds(ready, NOW_S) == 4.0
    assert launch_seconds(running, NOW_S) == 10.0
    assert launch_seconds(replace(running, ended_s=15.0), NOW_S) == 3.5


def test_a_stage_that_runs_has_taken_what_it_took_by_now() -> None:
    assert stage_seconds(StageRecord(Stage.START, 13.5), NOW_S) == 6.5
    assert stage_seconds(StageRecord(Stage.START, 13.5, 14.0), NOW_S) == 0.5
    assert stage_seconds(StageRecord(Stage.START, 13.5, 13.0), NOW_S) == 0.0  # clocks differ


def test_a_stage_without_a_sentence_tells_its_bytes() -> None:
    stage = StageRecord(Stage.IMAGE, 1.0, 2.0, {"registry": 5000, "volume": 0})
    assert stage_note(stage) == "5,000 B from registry"
    assert stage_note(replace(stage, detail="all cached")) == "all cached"


def test_no_launch_draws_nothing() -> None:
    assert drawn(Timeline("demo", "uid", ())) == ""
