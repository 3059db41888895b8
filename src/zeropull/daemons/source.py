"""`python -m zeropull.daemons.source --config R/source.json`: serves generations to nodes.

A process of its own, so that however many nodes start at once, the control plane goes on.
"""

from __future__ import annotations

import argparse
import signal
from dataclasses import dataclass
from pathlib import Path

import msgspec

from zeropull.delivery.certificates import ensure_certificate
from zeropull.delivery.generation_shelf import GenerationShelf
from zeropull.delivery.grants import Grants
from zeropull.delivery.serving import BlockServer, EgressLimit
from zeropull.errors import ConfigurationError
from zeropull.linux.files import replace_file
from zeropull.telemetry import configure_logging, get_logger

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """source.json. `address_file`: where the port is written once it listens."""

    caches_dir: str
    grants_dir: str
    certificate: str
    host: str
    address_file: str
    port: int = 0  # 0 = a free one
    max_connections: int = 256
    egress_bytes_per_s: float | None = None  # over all nodes; None = no limit
    log_level: str = "info"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="zeropull.daemons.source", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="source.json")
    config = _read_config(parser.parse_args(arguments).config)
    configure_logging("source", level=config.log_level)
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    ensure_certificate(Path(config.certificate), "zeropull source")
    server = BlockServer(
        GenerationShelf(Path(config.caches_dir)),
        Grants(Path(config.grants_dir)).find,
        Path(config.certificate),
        max_connections=config.max_connections,
        egress=EgressLimit(config.egress_bytes_per_s),
    )
    port = server.start(config.host, config.port)
    replace_file(Path(config.address_file), f"{config.host}:{port}\n", is_durable=False)
    log.info("serving generations", host=config.host, port=port)
    received = signal.sigwait(signals)
    log.info("stopping", signal=signal.Signals(received).name, sent_bytes=server.sent_bytes)
    server.close()


def _read_config(path: Path) -> SourceConfig:
    try:
        return msgspec.json.decode(path.read_bytes(), type=SourceConfig)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"{path}: {error}") from error


if __name__ == "__main__":
    main()
