"""The gateway's process: `python -m zeropull.daemons.gateway --settings R/settings.json`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import signal
import socket
from pathlib import Path

import uvloop

from zeropull.controlapi.client import ControlClient
from zeropull.daemons.settings_file import read_settings
from zeropull.errors import ConfigurationError
from zeropull.gateway.control_link import ControlLink
from zeropull.gateway.server import Gateway
from zeropull.linux.files import EVERYBODY_READS, replace_file
from zeropull.resources.settings import Settings
from zeropull.telemetry import configure_logging, get_logger

FINAL_REPORT_S = 2.0

log = get_logger(__name__)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="zeropull-gateway")
    parser.add_argument("--settings", type=Path, required=True, help="merged settings, JSON")
    arguments = parser.parse_args(argv)
    try:
        settings = read_settings(arguments.settings)
    except ConfigurationError as error:
        log.error("cannot serve", reason=error.reason)
        return 1
    configure_logging("gateway", level=settings.serve.log_level)
    _raise_file_limit()
    uvloop.run(run(settings))
    return 0


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    run_dir = settings.run_dir
    gateway = Gateway(
        settings.gateway,
        host=settings.serve.host,
        port=settings.serve.port,
        api_socket=str(settings.api_socket),
        account=settings.serve.account,
    )
    async with ControlClient(settings.control_socket, settings.gateway_token) as client:
        link = ControlLink(
            gateway,
            client,
            gateway_id=f"{socket.gethostname()}:{run_dir}",
            routes_file=run_dir / "routes.json",
        )
        link.load_routes()
        async with gateway:
            host, port = gateway.address
            address = f"{host}:{port}\n"
            replace_file(run_dir / "address", address, mode=EVERYBODY_READS, is_durable=False)
            gc.collect()
            gc.freeze()  # what start-up made stays: no collection need walk through it
            log.info("gateway listens", host=host, port=port)
            linked = asyncio.create_task(link.run())
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait({linked, stopped}, return_when=asyncio.FIRST_COMPLETED)
            log.info("gateway stops", in_flight=gateway.in_flight)
        linked.cancel()
        stopped.cancel()
        await asyncio.wait({linked, stopped})
        try:
            async with asyncio.timeout(FINAL_REPORT_S):
                await link.report()
        except TimeoutError:
            log.info("last report not delivered in time")
    if not linked.cancelled() and (error := linked.exception()) is not None:
        raise error


def _raise_file_limit() -> None:
    """Every request in flight has two sockets."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    raise SystemExit(main())
