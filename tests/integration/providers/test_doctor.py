"""The doctor on this very machine."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

from rich.console import Console

from zeropull.cli.doctor import run_doctor, try_erofs_mount
from zeropull.linux.mounts import mounts_below
from zeropull.resources.settings import FleetSettings, ServeSettings, Settings


def test_the_doctor_reports_every_check_and_leaves_nothing(tmp_path: Path) -> None:
    settings = Settings(serve=ServeSettings(state_dir=str(tmp_path / "state")))
    out = io.StringIO()
    status = run_doctor(settings, as_json=True, console=Console(file=out, width=200))
    document = json.loads(out.getvalue())
    assert status == (0 if document["usable"] else 1)
    findings = {finding["check"]: finding for finding in document["findings"]}
    assert {"root", "kernel", "EROFS", "overlayfs", "containerd", "runc"} <= findings.keys()
    assert "bridge rules" in findings
    assert all(f["cost"] and f["remedy"] for f in findings.values() if f["verdict"] != "good")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_program_is_named_with_its_remedy(tmp_path: Path) -> None:
    settings = Settings(
        serve=ServeSettings(state_dir=str(tmp_path)),
        fleet=FleetSettings(containerd="containerd-that-is-not-there"),
    )
    out = io.StringIO()
    assert run_doctor(settings, console=Console(file=out, width=200)) == 1
    assert "cannot serve on this machine: containerd" in out.getvalue()


def test_erofs_cannot_be_mounted_from_tmpfs_or_leaves_no_mount(tmp_path: Path) -> None:
    folder = tmp_path / "tmpfs"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
    try:
        try_erofs_mount(folder)
        assert len(mounts_below(folder)) == 1
    finally:
        subprocess.run(["umount", folder], check=True)
