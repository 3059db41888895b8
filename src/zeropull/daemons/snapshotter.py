"""The snapshotter plugin's process: `python -m zeropull.daemons.snapshotter --socket ...`.

It ends at SIGTERM or SIGINT; mounts stay, because containers run on them.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path

from zeropull.snapshotter.catalog import Catalog
from zeropull.snapshotter.counters import Counters
from zeropull.snapshotter.lowers import Lowers
from zeropull.snapshotter.service import SnapshotsService, start_server
from zeropull.snapshotter.snapshotter import Snapshotter
from zeropull.snapshotter.status import StatusServer
from zeropull.telemetry.logs import configure_logging, get_logger

_STOP_GRACE_S = 5.0


def main(
    arguments: list[str] | None = None, *, make_snapshotter: type[Snapshotter] = Snapshotter
) -> None:
    options = _parse(arguments)
    configure_logging("snapshotter", level=options.log_level)
    os.umask(0o077)  # the sockets are root's alone from the moment they exist
    # Blocked before any thread is born, so that all inherit it and `sigwait` alone sees them.
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    counters = Counters()
    options.state.mkdir(parents=True, exist_ok=True)
    snapshotter = make_snapshotter(
        options.state,
        Catalog(options.catalog),
        Lowers(options.mounts, use_loop=options.loop_devices or None),
        counters,
        time.time_ns,
        namespace=options.namespace,
        maps_ids=options.remap_ids,
    )
    snapshotter.open()
    status = StatusServer(options.status_socket, counters) if options.status_socket else None
    server = start_server(options.socket, SnapshotsService(snapshotter))
    log = get_logger(__name__)
    log.info("serving", socket=str(options.socket), namespace=options.namespace)
    try:
        received = signal.sigwait(signals)
        log.info("stopping", signal=signal.Signals(received).name)
    finally:
        server.stop(_STOP_GRACE_S).wait()
        if status is not None:
            status.close()
        snapshotter.close()


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="zeropull.daemons.snapshotter", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="for containerd")
    parser.add_argument("--state", type=Path, required=True, help="kept between starts")
    parser.add_argument("--catalog", type=Path, required=True, help="links to verified layers")
    parser.add_argument("--mounts", type=Path, required=True, help="mount points; a short path")
    parser.add_argument(
        "--namespace", help="the one containerd namespace served; default: the first that asks"
    )
    parser.add_argument(
        "--remap-ids",
        action="store_true",
        help="user namespaces by ID-mapped mounts; with the capability remap-ids in containerd",
    )
    parser.add_argument(
        "--loop-devices",
        action="store_true",
        help="mount layers through loop devices, also where the kernel mounts files",
    )
    parser.add_argument("--status-socket", type=Path, help="HTTP: /status and /metrics")
    parser.add_argument("--log-level", default="info")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
