from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from zeropull.linux.processes import (
    CAP_SYS_RESOURCE,
    has_capability,
    keep_freed_memory,
    low_priority,
)

_PARENT = """
import subprocess, sys, time
from zeropull.linux.processes import die_with_parent
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         preexec_fn=die_with_parent)
print(child.pid, flush=True)
time.sleep(600)
"""
_SHOWN = """
import sys
from pathlib import Path
from zeropull.linux.processes import show_command_line
show_command_line(["a daemon", "--of", "ours"])
print(Path("/proc/self/cmdline").read_bytes().rstrip(b"\\0"))
show_command_line(["x" * 10_000])
print(set(Path("/proc/self/cmdline").read_bytes().rstrip(b"\\0")) == {ord("x")})
"""


def test_a_child_that_dies_with_its_parent_does_so_however_the_parent_ends() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}/exe").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        assert not Path(f"/proc/{child}/exe").exists()
    finally:
        if Path(f"/proc/{child}/exe").exists():
            os.kill(child, signal.SIGKILL)


def test_a_capability_that_no_kernel_has_is_not_there() -> None:
    assert not has_capability(62)
    if os.geteuid() != 0:
        assert not has_capability(CAP_SYS_RESOURCE)


def test_the_command_line_that_ps_shows_can_be_changed() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", _SHOWN], capture_output=True, text=True, check=True
    )
    assert shown.stdout == "b'a daemon\\x00--of\\x00ours'\nTrue\n"


def test_a_low_priority_ends_with_its_block_as_far_as_the_system_lets_it() -> None:
    seen: list[int] = []

    def work() -> None:
        thread = threading.get_native_id()
        with low_priority():
            seen.append(os.getpriority(os.PRIO_PROCESS, thread))
        seen.append(os.getpriority(os.PRIO_PROCESS, thread))

    before = os.getpriority(os.PRIO_PROCESS, 0)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen[0] == 19
    assert seen[1] in (before, 19)  # a plain user may not go back


def test_malloc_can_be_told_to_keep_memory() -> None:
    keep_freed_memory(64 << 20)
