"""Two calls of ./run do not make things ready at the same time."""

from __future__ import annotations

import subprocess
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
MAKE_READY = """
set -eu
step() { printf '== %s\\n' "$*"; }
. "$1/lock.sh"
lock_set_up
echo ready
read -r _
unlock_set_up
echo unlocked
"""


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["sh", "-c", MAKE_READY, "sh", str(SCRIPTS)],
        cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_the_second_waits_until_the_first_has_made_things_ready(tmp_path: Path) -> None:
    with start(tmp_path) as first:
        assert line_of(first) == "ready"
        with start(tmp_path) as second:
            assert line_of(second) == "== another ./run makes things ready: waiting for it"
            first.communicate("\n", timeout=20)
            assert line_of(second) == "ready"
            second.communicate("\n", timeout=20)


def test_the_lock_goes_with_a_killed_holder(tmp_path: Path) -> None:
    with start(tmp_path) as first:
        assert line_of(first) == "ready"
        first.kill()
    with start(tmp_path) as second:
        assert line_of(second) == "ready"
        second.communicate("\n", timeout=20)
