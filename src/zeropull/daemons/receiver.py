"""`python -m zeropull.daemons.receiver --config N/receiver.json`: brings generations to a node."""

from __future__ import annotations

import argparse
import resource
import signal
import threading
import time
from pathlib import Path

import msgspec

from zeropull.delivery.control import ReceiverConfig, serve_control
from zeropull.delivery.fuse_files import FuseFiles
from zeropull.delivery.gate import MAX_WAITING, Gate, reserve_numbers
from zeropull.delivery.group_holder import keep_group, take_group
from zeropull.delivery.ladder import choose_rung
from zeropull.delivery.receiver import Receiver
from zeropull.delivery.whole_transfer import WholeTransfer
from zeropull.errors import ConfigurationError, Unavailable
from zeropull.telemetry import configure_logging, get_logger

_HOLDER_PATIENCE_S = 30.0
_KEEP_S = 1.0  # how soon a new holder has the group

log = get_logger(__name__)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="zeropull.daemons.receiver", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="receiver.json")
    config = _read_config(parser.parse_args(arguments).config)
    reserve_numbers(Path(config.journal))
    configure_logging("receiver", level=config.log_level)
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_WAITING if most == resource.RLIM_INFINITY else min(most, MAX_WAITING)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
    receiver = Receiver(Path(config.volumes_dir), config.source)
    name = choose_rung(Path(config.volumes_dir), config.rung)
    if name == "fanotify":
        _stand_on_events(config, receiver)
    elif name == "fuse":
        files = FuseFiles(Path(config.fuse_dir), receiver.filler)
        files.start()
        receiver.open(files, is_held=False)
    else:
        receiver.open(WholeTransfer(receiver.filler))
    receiver.start()
    with serve_control(Path(config.socket), receiver):
        log.info("receiving", volumes=config.volumes_dir)
        received = signal.sigwait(signals)
        log.info("stopping", signal=signal.Signals(received).name)
    receiver.close()


def _stand_on_events(config: ReceiverConfig, receiver: Receiver) -> None:
    """Readers wait in the kernel, by a group of events that the holder keeps."""
    holder = Path(config.holder_socket)
    group, is_new = _group(holder)
    gate = Gate(group, Path(config.journal), receiver.filler)
    receiver.open(gate, is_held=not is_new)
    gate.start()
    threading.Thread(target=_keep, args=(holder, group), name="keep", daemon=True).start()


def _group(holder: Path) -> tuple[int, bool]:
    deadline_s = time.monotonic() + _HOLDER_PATIENCE_S
    while True:
        try:
            return take_group(holder)
        except Unavailable:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)


def _keep(holder: Path, group: int) -> None:
    """A holder that was started anew has no group: it gets ours."""
    while True:
        try:
            keep_group(holder, group)
        except Unavailable as error:
            log.warning("the events are held by this process alone", reason=error.reason)
        time.sleep(_KEEP_S)


def _read_config(path: Path) -> ReceiverConfig:
    try:
        return msgspec.json.decode(path.read_bytes(), type=ReceiverConfig)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"{path}: {error}") from error


if __name__ == "__main__":
    main()
