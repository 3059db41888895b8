"""The daemons of an instance: started inside its network namespace and cgroup, known by pid files.

A pid file holds the process's own line of /proc/<pid>/stat, written by the process before it
becomes the daemon. Process id and start time (field 22) together never name another process, and
the file exists even when the starter dies right after the start.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from zeropull.linux.network_namespaces import in_netns, netns_exists, netns_identity
from zeropull.providers.local.names import InstanceNames
from zeropull.providers.local.spawner import Spawner, spawn_of

CONTAINERD, SNAPSHOTTER, AGENT = "containerd", "snapshotter", "agent"
HOLDER, RECEIVER = "holder", "receiver"  # of caches that come over the network
_LOG_LIMIT_BYTES = 8 << 20
_POLL_S = 0.02
# Moves itself into every cgroup, writes its pid file by rename, and becomes the daemon. The start
# time survives exec.
_LAUNCHER = """
pidfile=$1; shift
while [ "$1" != -- ]; do echo 0 > "$1" || exit 125; shift; done; shift
read -r line < /proc/$$/stat && echo "$line" > "$pidfile.tmp" && mv "$pidfile.tmp" "$pidfile"
exec "$@"
"""


def start_daemon(
    names: InstanceNames,
    role: str,
    command: Sequence[str],
    cgroup_files: Sequence[Path],
    spawner: Spawner | None = None,
) -> subprocess.Popen[bytes] | None:
    """Start one daemon in a session of its own; its output is appended to logs/<role>.log.

    The caller keeps the returned object and polls it, so that the process is reaped when it ends.
    None: the spawner started it, and reaps it.
    """
    pid_file = _pid_file(names, role)
    pid_file.unlink(missing_ok=True)
    log = names.logs_dir / f"{role}.log"
    if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))
    spawn = spawn_of(command, names.netns, cgroup_files, pid_file, log)
    if spawner is not None and spawn is not None and spawner.spawn(spawn):
        return None
    environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                ["/bin/sh", "-c", _LAUNCHER, role, pid_file, *cgroup_files, "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=environment,
                start_new_session=True,
            )

    process = in_netns(names.netns, start)
    _wait_for_pid_file(pid_file, process)
    return process


def daemon_pid(names: InstanceNames, role: str) -> int | None:
    """Process id of the running daemon, None when it is not running (any more)."""
    try:
        recorded = _parse_stat(_pid_file(names, role).read_text())
        current = _parse_stat(Path(f"/proc/{recorded[0]}/stat").read_text())
    except (OSError, ValueError, IndexError):
        return None
    if current[1] != recorded[1] or current[2] in "ZX":
        return None
    return recorded[0]


def kill_daemon(names: InstanceNames, role: str, signal_number: int = signal.SIGKILL) -> None:
    """Signal the daemon when it runs."""
    pid = daemon_pid(names, role)
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal_number)


def accepts(path: Path) -> bool:
    """True when something accepts connections on this Unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def processes_in_netns(name: str) -> set[int]:
    """Every process whose network namespace is this one."""
    found: set[int] = set()
    if not netns_exists(name):
        return found
    identity = netns_identity(name)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                status = (entry / "ns" / "net").stat()
                if (status.st_dev, status.st_ino) == identity:
                    found.add(int(entry.name))
    return found


def unix_sockets_in_netns(name: str, folder: Path) -> set[Path]:
    """Sockets below `folder` that a process of the namespace is bound to."""
    if not netns_exists(name):
        return set()
    text = in_netns(name, lambda: Path("/proc/thread-self/net/unix").read_text(errors="replace"))
    paths = (Path(line.split()[-1]) for line in text.splitlines()[1:] if "/" in line)
    return {path for path in paths if path.parent == folder}


def find_program(name: str) -> str | None:
    """The full path of a program on PATH or in the folders of system programs."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin")


def _wait_for_pid_file(pid_file: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10.0
    while not pid_file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _pid_file(names: InstanceNames, role: str) -> Path:
    return names.run_dir / f"{role}.pid"


def _parse_stat(text: str) -> tuple[int, int, str]:
    """(pid, start time in clock ticks, state); the name in brackets may hold anything."""
    after = text[text.rindex(")") + 1 :].split()
    return int(text.split(" ", 1)[0]), int(after[19]), after[0]
