"""Draws the launches of an endpoint as bars in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

MIN_BAR_CELLS, MAX_BAR_CELLS = 16, 48
DETAIL_CELLS = 62  # of a terminal's width are for names, seconds and details
COLOURS = {
    "detect": "grey62",
    "provision": "blue",
    "image": "green",
    "model": "cyan",
    "start": "yellow",
    "health": "magenta",
    "route": "white",
}


def draw_timeline(data: dict[str, Any], console: Console, now_s: float) -> None:
    """One block per launch, a bar per stage, all to the scale of the longest launch."""
    launches = data["launches"]
    longest_s = max((launch_seconds(one, now_s) for one in launches), default=1.0) or 1.0
    cells = max(MIN_BAR_CELLS, min(MAX_BAR_CELLS, console.width - DETAIL_CELLS))
    for launch in launches:
        seconds = launch_seconds(launch, now_s)
        state = "ready" if launch.get("ready_s") else "not ready"
        console.print(
            f"[bold]{launch['copy_id']}[/] on {launch['instance_id']} "
            f"({launch['instance_type']}, {launch['variant']}): {state} after {seconds:.2f} s"
        )
        console.print(f"  {launch['reason']}", markup=False, style="dim")
        table = Table.grid(padding=(0, 1))
        table.add_column(justify="right", min_width=10)
        table.add_column(width=cells)
        table.add_column(justify="right", min_width=9)
        table.add_column(overflow="fold")
        for stage in launch["stages"]:
            table.add_row(
                stage["stage"],
                _bar(stage, launch["began_s"], longest_s, now_s, cells),
                f"{stage_seconds(stage, now_s):.3f} s",
                Text(stage_note(stage)),
            )
        console.print(table)


def stage_seconds(stage: dict[str, Any], now_s: float) -> float:
    """How long the stage took, or has taken by now."""
    ended_s = stage["ended_s"] if stage.get("ended_s") is not None else now_s
    return max(0.0, float(ended_s) - float(stage["began_s"]))


def launch_seconds(launch: dict[str, Any], now_s: float) -> float:
    """From the decision until the copy entered rotation, or what is known of it."""
    end_s = launch.get("ready_s")
    if end_s is None:
        ends = [s["ended_s"] for s in launch["stages"] if s.get("ended_s") is not None]
        running = launch.get("ended_s") is None
        end_s = now_s if running else max(ends, default=launch["began_s"])
    return max(0.0, float(end_s) - float(launch["began_s"]))


def stage_note(stage: dict[str, Any]) -> str:
    """The stage's own sentence, or its bytes by source."""
    if stage.get("detail"):
        return str(stage["detail"])
    return ", ".join(f"{n:,} B from {s}" for s, n in stage["bytes_by_source"].items() if n)


def _bar(stage: dict[str, Any], began_s: float, longest_s: float, now_s: float, cells: int) -> Text:
    start = round((stage["began_s"] - began_s) / longest_s * cells)
    length = max(1, round(stage_seconds(stage, now_s) / longest_s * cells))
    start = max(0, min(start, cells - 1))
    length = min(length, cells - start)
    text = Text(" " * start)
    text.append("█" * length, style=COLOURS.get(stage["stage"], "white"))
    return text
