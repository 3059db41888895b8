"""The wheel works where there is no source tree, with the versions of requirements.lock."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import zeropull

ROOT = Path(__file__).resolve().parents[3]
UV = (sys.executable, "-m", "uv")
IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys, zeropull
root = pathlib.Path(zeropull.__file__).parent
assert root.is_relative_to(sys.prefix), root
for found in pkgutil.walk_packages(zeropull.__path__, "zeropull."):
    if not found.name.endswith(("regenerate", "worker")):
        importlib.import_module(found.name)
"""


def run(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    if done.returncode != 0 and "error sending request" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(*UV, "build", "--quiet", "--wheel", "--out-dir", folder / "dist", ROOT, cwd=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    run(*UV, "venv", "--quiet", "--python", sys.executable, folder / "venv", cwd=folder)
    python = folder / "venv/bin/python"
    run(
        *UV, "pip", "install", "--quiet", "--python", python,
        "-r", ROOT / "requirements.lock", wheel, cwd=folder,
    )  # fmt: skip
    return folder


def test_the_command_tells_the_version(installed: Path) -> None:
    assert run(installed / "venv/bin/zeropull", "version", cwd=installed) == (
        f"{zeropull.__version__}\n"
    )


def test_every_module_can_be_imported(installed: Path) -> None:
    run(installed / "venv/bin/python", "-c", IMPORT_ALL, cwd=installed)
