"""`zeropull doctor`: is this machine fit, what does every shortfall cost, how is it mended."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from zeropull.cli.plain_text import plain
from zeropull.cli.state import state_finding
from zeropull.erofs.tree import LayerTree
from zeropull.erofs.writer import write_metadata
from zeropull.errors import ZeropullError
from zeropull.layers.layout import DATA_FILE, META_FILE
from zeropull.layers.mount import mount_layer, unmount
from zeropull.providers.local.machine import Finding, Verdict, examine, unusable_reason
from zeropull.resources.settings import Settings

_COLOURS = {Verdict.GOOD: "green", Verdict.REDUCED: "yellow", Verdict.MISSING: "red"}


def run_doctor(settings: Settings, *, as_json: bool = False, console: Console | None = None) -> int:
    """Print the findings; returns the exit status: 0 unless zeropull cannot serve here at all."""
    out = console or Console()
    reason = unusable_reason()
    if reason is not None:
        if as_json:
            out.print_json(json.dumps({"usable": False, "reason": reason, "findings": []}))
        else:
            out.print(plain(reason))
        return 1
    findings = examine(settings.fleet, Path(settings.serve.state_dir), try_erofs_mount)
    state = state_finding(settings)
    findings += [state] if state is not None else []
    usable = all(finding.verdict is not Verdict.MISSING for finding in findings)
    if as_json:
        document = {
            "usable": usable,
            "findings": [dataclasses.asdict(finding) for finding in findings],
        }
        out.print_json(json.dumps(document))
    else:
        out.print(findings_table(findings))
        out.print(plain(_summary(findings)))
    return 0 if usable else 1


def try_erofs_mount(folder: Path) -> str | None:
    """Mount an empty image from a file in `folder`; None, or what went wrong."""
    (folder / META_FILE).write_bytes(write_metadata(LayerTree(), 0))
    (folder / DATA_FILE).touch()
    target = folder / "target"
    target.mkdir()
    try:
        mount_layer(folder, target)
    except ZeropullError as error:
        return str(error)
    try:
        list(target.iterdir())
    finally:
        unmount(target, lazy=True)
    return None


def findings_table(findings: list[Finding]) -> Table:
    """A row per check."""
    table = Table(title="zeropull doctor", title_justify="left")
    for heading in ("check", "", "found", "what it costs, how to mend it"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        advice = ". ".join(part for part in (finding.cost, finding.remedy) if part)
        mark = Text(finding.verdict.value, style=_COLOURS[finding.verdict])
        table.add_row(plain(finding.check), mark, plain(finding.found), plain(advice))
    return table


def _summary(findings: list[Finding]) -> str:
    missing = [finding.check for finding in findings if finding.verdict is Verdict.MISSING]
    if missing:
        return f"zeropull cannot serve on this machine: {', '.join(missing)}."
    reduced = sum(finding.verdict is Verdict.REDUCED for finding in findings)
    if reduced:
        return f"zeropull can serve on this machine, with {reduced} shortfalls."
    return "zeropull can serve on this machine."
