"""`zeropull backup` and `zeropull restore`, and what `zeropull doctor` says of the state."""

from __future__ import annotations

import time
from pathlib import Path

from zeropull.admin.client import supervisor_pid
from zeropull.errors import Conflict, ZeropullError
from zeropull.providers.local.machine import Finding, Verdict
from zeropull.resources.settings import Settings
from zeropull.statestore.backups import back_up, restore
from zeropull.statestore.damage import damaged_in

NAMED = 5


def backup_lines(settings: Settings, target: Path) -> list[str]:
    """Make the backup; returns what is said of it.

    Raises:
        ZeropullError: as `back_up`.
    """
    content = back_up(settings.database, target)
    lines = [f"{target}: {content.documents} documents, {content.size_bytes:,} bytes"]
    if content.damaged:
        lines.append(f"{content.damaged} damaged documents were left out: see `zeropull doctor`")
    return lines


def restore_lines(settings: Settings, source: Path) -> list[str]:
    """Restore the backup; returns what is said of it.

    Raises:
        Conflict: a server runs.
        ZeropullError: as `restore`.
    """
    pid = supervisor_pid(settings.run_dir)
    if pid is not None:
        raise Conflict(
            f"`zeropull serve` (process {pid}) uses this state: stop it first; SIGTERM lets its "
            "instances go on"
        )
    moment = time.strftime("%Y%m%dT%H%M%S")
    content = restore(source, settings.database, moment)
    return [
        f"{settings.database}: {content.documents} documents; the state of before is kept as "
        f"{settings.database.name}.replaced-{moment}",
        "`zeropull serve` ends instances that it does not know from this state and replaces those "
        "that are gone",
    ]


def state_finding(settings: Settings) -> Finding | None:
    """None while there is no state."""
    if not settings.database.exists():
        return None
    try:
        damaged = damaged_in(settings.database)
    except ZeropullError as error:
        return Finding("state", Verdict.MISSING, error.reason)
    if not damaged:
        return Finding("state", Verdict.GOOD, "every document is whole")
    names = ", ".join(f"{each.kind} {each.key}" for each in damaged[:NAMED])
    more = f" and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
    return Finding(
        "state",
        Verdict.REDUCED,
        f"{len(damaged)} damaged documents were set aside: {names}{more}",
        "they count as missing",
        "create them again, or bring a backup back with `zeropull restore FILE`",
    )
