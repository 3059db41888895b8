"""What ./run finds out about the machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def temporary_folder_after(script: str, temporary_folder: str) -> str:
    program = f". scripts/messages.sh; . scripts/system.sh; {script}; echo; printenv TMPDIR"
    environment = {"PATH": os.environ["PATH"], "TMPDIR": temporary_folder}
    command = ["sh", "-eu", "-c", program]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("kind", ["tmpfs", "overlayfs"])
def test_temporary_files_go_where_images_can_be_mounted_from(kind: str) -> None:
    """Debian 13 has a tmpfs in /tmp; a container has overlayfs everywhere."""
    stat = f"stat() {{ case $4 in /var/tmp) echo ext2/ext3 ;; *) echo {kind} ;; esac; }}"
    assert temporary_folder_after(f"{stat}; temporary_folder_ready", "/some") == "/var/tmp"


def test_temporary_files_stay_where_they_are_if_nothing_is_better() -> None:
    always = "stat() { echo overlayfs; }"
    assert temporary_folder_after(f"{always}; temporary_folder_ready", "/some") == "/some"
    fine = "stat() { echo xfs; }"
    assert temporary_folder_after(f"{fine}; temporary_folder_ready", "/some") == "/some"


def test_the_real_kind_of_a_file_system_is_seen() -> None:
    script = "on_disk /proc; if on_disk /dev/shm; then false; fi"
    assert temporary_folder_after(script, "/some") == "/some"
