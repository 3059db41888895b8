"""What ./run finds out about the machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def run(script: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Where the script defines a function, that takes the place of a program."""
    return subprocess.run(
        ["sh", "-eu", "-c", f". scripts/messages.sh; . scripts/system.sh; {script}"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def temporary_folder_after(script: str, temporary_folder: str) -> str:
    done = run(f"{script}; echo; printenv TMPDIR", {"TMPDIR": temporary_folder})
    assert done.returncode == 0, done.stderr
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


APT_GET = """#!/bin/sh
echo "E: $TROUBLE"
echo tried >>"$TRIES"
[ "$(wc -l <"$TRIES")" -ge 3 ]
"""


@pytest.fixture
def with_apt_get(tmp_path: Path) -> dict[str, str]:
    """The environment with an apt-get that has trouble twice, and a sleep that takes no time."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in {"apt-get": APT_GET, "sleep": "#!/bin/sh\n"}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return {"PATH": f"{programs}:{os.environ['PATH']}", "TRIES": str(tmp_path / "tries")}


@pytest.mark.parametrize(
    ("trouble", "status", "tries"),
    [
        ("Could not get lock /var/lib/apt/lists/lock. It is held by process 1 (apt-get)", 0, 3),
        ("Temporary failure resolving 'mirror.example.com'", 1, 1),
    ],
)
def test_a_lock_of_others_is_waited_for_and_nothing_else(
    trouble: str, status: int, tries: int, with_apt_get: dict[str, str]
) -> None:
    done = run("update_package_lists", {**with_apt_get, "TROUBLE": trouble})
    assert done.returncode == status
    assert len(Path(with_apt_get["TRIES"]).read_text().splitlines()) == tries


def test_the_lock_is_not_waited_for_forever(with_apt_get: dict[str, str]) -> None:
    environment = {**with_apt_get, "TROUBLE": "Could not get lock /some"}
    done = run("APT_PATIENCE_S=0; update_package_lists", environment)
    assert done.returncode == 1
    assert "Could not get lock" in done.stdout
