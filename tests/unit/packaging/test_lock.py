"""The lock file knows what pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
_PINNED = re.compile(r"([A-Za-z0-9_.-]+)==(\S+)")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def test_every_dependency_is_pinned_at_or_above_its_minimum() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pinned = {found[1]: found[2] for line in lines if (found := _PINNED.match(line))}
    for dependency in project["dependencies"]:
        name, _, minimum = dependency.partition(">=")
        assert name in pinned, f"{name} is missing: write requirements.lock anew"
        assert _numbers(pinned[name]) >= _numbers(minimum.split(",")[0]), dependency
