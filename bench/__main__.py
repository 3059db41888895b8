"""Runs one benchmark by its name."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

_NO_BENCHMARK = {"__init__", "__main__"}


def names() -> list[str]:
    """Every module here with a `main` of its own, found by its source."""
    return sorted(
        path.stem
        for path in Path(__file__).parent.glob("*.py")
        if path.stem not in _NO_BENCHMARK and "\ndef main(" in path.read_text(encoding="utf-8")
    )


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in names():
        print(f"usage: python -m bench {{{','.join(names())}}} [--json FILE]", file=sys.stderr)
        return 2
    module = importlib.import_module(f"bench.{argv[0]}")
    return int(module.main(argv[1:]) or 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
