"""Draws the launches of an endpoint as bars in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from zeropull.admin.messages import Timeline
from zeropull.cli.plain_text import plain
from zeropull.resources.instances import TimelineRecord
from zeropull.resources.stages import Stage, StageRecord

MIN_BAR_CELLS, MAX_BAR_CELLS = 16, 48
DETAIL_CELLS = 62  # of a terminal's width are for names, seconds and details
COLOURS = {
    Stage.DETECT: "grey62",
    Stage.PROVISION: "blue",
    Stage.IMAGE: "green",
    Stage.MODEL: "cyan",
    Stage.START: "yellow",
    Stage.HEALTH: "magenta",
    Stage.ROUTE: "white",
}


def draw_timeline(data: Timeline, console: Console, now_s: float) -> None:
    """One block per launch, a bar per stage, all to the scale of the longest launch."""
    longest_s = max((launch_seconds(one, now_s) for one in data.launches), default=1.0) or 1.0
    cells = max(MIN_BAR_CELLS, min(MAX_BAR_CELLS, console.width - DETAIL_CELLS))
    for launch in data.launches:
        seconds = launch_seconds(launch, now_s)
        state = "ready" if launch.ready_s else "not ready"
        where = f" on {launch.instance_id} ({launch.instance_type}, {launch.variant})"
        told = f"{where}: {state} after {seconds:.2f} s"
        console.print(plain(launch.copy_id, "bold") + plain(told))
        console.print(plain(f"  {launch.reason}", "dim"))
        table = Table.grid(padding=(0, 1))
        table.add_column(justify="right", min_width=10)
        table.add_column(width=cells)
        table.add_column(justify="right", min_width=9)
        table.add_column(overflow="fold")
        for stage in launch.stages:
            table.add_row(
                stage.stage.value,
                _bar(stage, launch.began_s, longest_s, now_s, cells),
                f"{stage_seconds(stage, now_s):.3f} s",
                plain(stage_note(stage)),
            )
        console.print(table)


def stage_seconds(stage: StageRecord, now_s: float) -> float:
    """How long the stage took, or has taken by now."""
    ended_s = stage.ended_s if stage.ended_s is not None else now_s
    return max(0.0, ended_s - stage.began_s)


def launch_seconds(launch: TimelineRecord, now_s: float) -> float:
    """From the decision until the copy entered rotation, or what is known of it."""
    end_s = launch.ready_s
    if end_s is None:
        ends = [stage.ended_s for stage in launch.stages if stage.ended_s is not None]
        end_s = now_s if launch.ended_s is None else max(ends, default=launch.began_s)
    return max(0.0, end_s - launch.began_s)


def stage_note(stage: StageRecord) -> str:
    """The stage's own sentence, or its bytes by source."""
    if stage.detail:
        return stage.detail
    return ", ".join(f"{n:,} B from {s}" for s, n in stage.bytes_by_source.items() if n)


def _bar(stage: StageRecord, began_s: float, longest_s: float, now_s: float, cells: int) -> Text:
    start = round((stage.began_s - began_s) / longest_s * cells)
    length = max(1, round(stage_seconds(stage, now_s) / longest_s * cells))
    start = max(0, min(start, cells - 1))
    length = min(length, cells - start)
    text = Text(" " * start)
    text.append("█" * length, style=COLOURS[stage.stage])
    return text
