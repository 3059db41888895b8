"""`python -m zeropull.daemons.node_agent --config N/node.json`: the agent of one node.

SIGTERM and SIGINT end the agent only: containers run on, and the next agent adopts them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from zeropull.errors import ConfigurationError, ZeropullError
from zeropull.linux.processes import keep_freed_memory
from zeropull.nodeagent.agent import run_agent
from zeropull.providers.node_file import read_node_config
from zeropull.resources.node import NodeConfig
from zeropull.telemetry import configure_logging, get_logger

# A model passes through buffers of a megabyte. If malloc gave them back to the kernel after each
# use, every one of their pages would be a fault and be cleared again.
_KEPT_BYTES = 64 << 20

log = get_logger(__name__)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the node's node.json")
    arguments = parser.parse_args()
    try:
        config = read_node_config(arguments.config)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    configure_logging("nodeagent", level=config.log_level, instance_id=config.instance_id)
    keep_freed_memory(_KEPT_BYTES)
    try:
        asyncio.run(_run(config))
    except (ZeropullError, TimeoutError) as error:
        log.error("the node agent ends", reason=str(error) or "containerd does not answer")
        return 1
    return 0


async def _run(config: NodeConfig) -> None:
    loop = asyncio.get_running_loop()
    agent = asyncio.create_task(run_agent(config))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.cancel)
    log.info("node agent starts")
    with contextlib.suppress(asyncio.CancelledError):
        await agent
    log.info("node agent ends, containers run on")


if __name__ == "__main__":
    sys.exit(main())
