"""The contracts of `.importlinter` find what they forbid, and are explained."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LINT = Path(sys.executable).with_name("lint-imports")


def contracts() -> configparser.ConfigParser:
    found = configparser.ConfigParser(interpolation=None)
    found.read(ROOT / ".importlinter", encoding="utf-8")
    return found


def test_every_contract_is_explained_in_the_architecture() -> None:
    told = " ".join((ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8").split())
    for section in contracts().sections():
        name = contracts()[section].get("name")
        assert name is None or name in told, name


def test_modules_of_the_standard_library_are_seen(tmp_path: Path) -> None:
    """`zeropull.oci.digests` needs hashlib: forbidden, it is found."""
    broken = contracts()
    pure = broken["importlinter:contract:pure"]
    pure["forbidden_modules"] += "\nhashlib"
    for section in broken.sections():
        if section not in ("importlinter", "importlinter:contract:pure"):
            broken.remove_section(section)
    config = tmp_path / "importlinter"
    with config.open("w", encoding="utf-8") as file:
        broken.write(file)
    checked = subprocess.run(
        [LINT, "--no-cache", "--config", config],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert checked.returncode == 1, checked.stdout + checked.stderr
    assert "zeropull.oci.digests -> hashlib" in checked.stdout
