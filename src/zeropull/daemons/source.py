"""`python -m zeropull.daemons.source --settings R/settings.json`: serves generations to nodes.

A process of its own, so that however many nodes start at once, the control plane goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
from pathlib import Path

from zeropull.daemons.settings_file import read_settings
from zeropull.delivery.certificates import ensure_certificate
from zeropull.delivery.generation_shelf import GenerationShelf
from zeropull.delivery.grants import Grants
from zeropull.delivery.serving import BlockServer, EgressLimit
from zeropull.linux.files import replace_file
from zeropull.resources.settings import Settings
from zeropull.telemetry import configure_logging, get_logger

log = get_logger(__name__)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="zeropull.daemons.source", description=__doc__)
    parser.add_argument("--settings", type=Path, required=True, help="merged settings, JSON")
    settings = read_settings(parser.parse_args(arguments).settings)
    configure_logging("source", level=settings.serve.log_level)
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    ensure_certificate(settings.source_certificate, "zeropull source")
    server = BlockServer(
        GenerationShelf(settings.state_dir / "caches"),
        Grants(settings.source_grants).find,
        settings.source_certificate,
        max_connections=settings.source.max_connections,
        egress=EgressLimit(settings.source.egress_bytes_per_s),
    )
    port = _listen(server, settings)
    address = f"{settings.source.host}:{port}"
    replace_file(settings.source_address_file, address, is_durable=False)
    log.info("serving generations", address=address)
    received = signal.sigwait(signals)
    log.info("stopping", signal=signal.Signals(received).name, sent_bytes=server.sent_bytes)
    server.close()


def _listen(server: BlockServer, settings: Settings) -> int:
    """The port of the source before this one if it is free: nodes know it."""
    if settings.source.port == 0:
        with contextlib.suppress(OSError, ValueError):
            known = int(settings.source_address_file.read_text().rpartition(":")[2])
            return server.start(settings.source.host, known)
    return server.start(settings.source.host, settings.source.port)


if __name__ == "__main__":
    main()
