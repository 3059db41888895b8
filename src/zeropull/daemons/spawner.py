"""`python -m zeropull.daemons.spawner`: starts the daemons of nodes without their imports' seconds.

It imports the node agent and the snapshotter once, stays single-threaded, and forks for each
request that comes on its standard input, a Unix socket. The child moves into the network namespace
and the cgroups, writes its pid file and becomes the daemon, as if it had been executed. When the
other end closes, the spawner ends; its children run on.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import msgspec

from zeropull.linux.files import EVERYBODY_READS, replace_file
from zeropull.linux.network_namespaces import enter_netns
from zeropull.linux.processes import show_command_line
from zeropull.providers.local.spawner import READY, STARTED, Spawn

MODULES = (
    "zeropull.daemons.node_agent",
    "zeropull.daemons.snapshotter",
    "zeropull.daemons.receiver",
    "zeropull.daemons.holder",
)
_REQUEST_BYTES = 1 << 16


def main() -> int:
    for module in MODULES:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # what is shared with the children stays shared
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
    # The other end may be closed at any time, even before this one is ready.
    with contextlib.suppress(ConnectionError), socket.socket(fileno=os.dup(0)) as requests:
        requests.send(READY)
        while message := requests.recv(_REQUEST_BYTES):
            spawn = msgspec.json.decode(message, type=Spawn)
            if os.fork() == 0:
                _become(spawn, requests)
    return 0


def _become(spawn: Spawn, requests: socket.socket) -> None:
    """Never returns."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sys.argv = [spawn.module, *spawn.arguments]
        show_command_line([sys.executable, "-m", *sys.argv])
        try:
            _move(spawn)
            requests.send(STARTED)
        except OSError as error:
            requests.send(str(error).encode())
            raise
        requests.close()
        code = importlib.import_module(spawn.module).main() or 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        logging.getLogger(__name__).exception("%s broke off", spawn.module)
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _move(spawn: Spawn) -> None:
    """Session, output, namespace, cgroups, pid file: in the order in which they can fail."""
    os.setsid()
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(spawn.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(output)
    enter_netns(spawn.netns)
    for file in spawn.cgroup_files:
        Path(file).write_text("0")
    stat = Path("/proc/self/stat").read_text()
    replace_file(Path(spawn.pid_file), stat, mode=EVERYBODY_READS, is_durable=False)


if __name__ == "__main__":
    sys.exit(main())
