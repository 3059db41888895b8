"""`node.json`: what a provider tells the daemons of a node that it starts."""

from __future__ import annotations

from pathlib import Path

import msgspec

from zeropull.errors import ConfigurationError
from zeropull.linux.files import replace_file
from zeropull.resources.node import NodeConfig


def read_node_config(path: Path) -> NodeConfig:
    """Read `node.json`.

    Raises:
        ConfigurationError: missing, or not what this version writes.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=NodeConfig)
    except OSError as error:
        raise ConfigurationError(f"node configuration {path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise ConfigurationError(f"node configuration {path}: {error}") from error


def write_node_config(path: Path, config: NodeConfig) -> None:
    """Replace `node.json`. It holds the node's token, so only its owner can read it."""
    replace_file(path, msgspec.json.format(msgspec.json.encode(config), indent=2))
