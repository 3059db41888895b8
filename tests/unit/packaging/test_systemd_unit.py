"""The systemd unit: systemd takes it, and a stop lets containers serve on."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from zeropull.daemons.supervisor import STOP_TIMEOUT_S

PACKAGING = Path(__file__).resolve().parents[3] / "packaging"
UNIT = PACKAGING / "zeropull.service"
CHILDREN = 2  # the gateway and the control plane, one after the other


@pytest.fixture
def service() -> configparser.SectionProxy:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # names keep their case
    unit.read(UNIT, encoding="utf-8")
    return unit["Service"]


def test_a_stop_detaches_and_has_the_time_for_it(service: configparser.SectionProxy) -> None:
    """SIGTERM and nothing else, to the supervisor alone: its children detach in its order. With
    another KillMode the children would be signalled beside it."""
    assert service["KillSignal"] == "SIGTERM"
    assert service["KillMode"] == "process"
    assert int(service["TimeoutStopSec"]) > CHILDREN * STOP_TIMEOUT_S
    assert "ExecStop" not in service
    assert "SIGINT" not in service.values()


def test_a_crash_is_mended_and_a_stop_is_one(service: configparser.SectionProxy) -> None:
    """`zeropull stop` ends the supervisor with status 0, which must not start it again."""
    assert service["Type"] == "exec"
    assert service["Restart"] == "on-failure"
    assert service["OOMPolicy"] == "continue"
    assert service["Delegate"] == "yes"


@pytest.mark.parametrize("name", ["zeropull.service", "zeropull.socket"])
def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path, name: str) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    # Verified beside nothing of this machine's own units, whose faults are not ours.
    for unit in PACKAGING.glob("zeropull.*"):
        shutil.copy(unit, tmp_path)
    verified = subprocess.run(
        [program, "verify", "--man=no", tmp_path / name],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    ours = [line for line in verified.stderr.splitlines() if "zeropull" in line]
    assert (verified.returncode, ours) == (0, []), verified.stderr
