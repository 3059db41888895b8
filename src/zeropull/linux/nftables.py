"""Run nft(8), in the network namespace of the calling thread."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

from zeropull.errors import Unavailable

_TIMEOUT_S = 20.0


def load_rules(rules: str) -> None:
    """Apply a script in one transaction.

    Raises:
        Unavailable: nft is not there, does not end, or refuses the rules; nothing was changed.
    """
    _run(["-f", "-"], rules)


def list_rules(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """The objects that `nft -j list ...` tells; `arguments` begin with `list`.

    Raises:
        Unavailable: as for `load_rules`, or what is to be listed is not there.
    """
    items: list[dict[str, Any]] = json.loads(_run(["-j", *arguments]))["nftables"]
    return items


def _run(arguments: Sequence[str], rules: str | None = None) -> str:
    try:
        result = subprocess.run(
            ["nft", *arguments],
            input=rules,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"nft cannot be run: {error}") from error
    if result.returncode != 0:
        raise Unavailable(f"nft {' '.join(arguments)}: {result.stderr.strip()}")
    return result.stdout
