"""Takes a gateway's readings into a metric store every second, as the control plane does.

    python -m bench.readings --run-dir DIR     # DIR/control.sock, DIR/metrics.db

The real server of the private API and the real store; no endpoints, no scaling. How many
invocations the readings told of so far stands in DIR/invocations.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

from aiohttp import web

from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.server import ControlServer
from zeropull.metricstore.store import MetricStore
from zeropull.scaling.metrics import publish_readings

COUNT_FILE = "invocations"
LAG_S = 3.0  # until what has ended is in the readings, and they are here


async def take(run_dir: Path, token: str) -> None:
    """Until it is killed."""
    exchange, metrics = Exchange(), MetricStore(run_dir / "metrics.db")
    server = ControlServer(exchange, node_token=lambda _: None, gateway_token=token)
    runner = web.AppRunner(server.app())
    await runner.setup()
    await web.UnixSite(runner, str(run_dir / "control.sock")).start()
    invocations = 0
    while True:
        readings = exchange.take_readings()
        publish_readings(metrics, readings)
        metrics.flush()
        invocations += sum(reading.invocations for reading in readings)
        temporary = run_dir / f"{COUNT_FILE}.tmp"
        temporary.write_text(str(invocations))
        temporary.replace(run_dir / COUNT_FILE)
        await asyncio.sleep(1.0 - time.time() % 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.readings", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--token", default="bench")
    arguments = parser.parse_args()
    asyncio.run(take(arguments.run_dir, arguments.token))


if __name__ == "__main__":
    main()
