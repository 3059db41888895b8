"""The documents name only what exists."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zeropull.cli.config import load_settings
from zeropull.cli.main import app

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
MODULE = re.compile(r"`(zeropull(?:\.[a-z_0-9]+)+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_module_that_a_document_names_exists(document: Path) -> None:
    for name in MODULE.findall(document.read_text(encoding="utf-8")):
        assert importlib.util.find_spec(name) is not None, name


def test_every_module_that_the_code_names_exists() -> None:
    """A module, or a name that is written in one."""
    source, unknown = ROOT / "src", set()
    for path in [*source.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        for name in re.findall(r"`(zeropull(?:\.\w+){2,})`", path.read_text(encoding="utf-8")):
            module, _, attribute = name.rpartition(".")
            place = source / name.replace(".", "/")
            is_module = place.is_dir() or place.with_suffix(".py").is_file()
            holder = source / f"{module.replace('.', '/')}.py"
            is_name = holder.exists() and attribute in holder.read_text(encoding="utf-8")
            if not (is_module or is_name):
                unknown.add(f"{path.relative_to(ROOT)}: {name}")
    assert unknown == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_inside_the_project_leads_somewhere(document: Path) -> None:
    for target in LINK.findall(document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


def test_every_file_that_answers_a_question_exists() -> None:
    text = (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8")
    answers = re.findall(r"^\| .*\? \| `([a-z_0-9/]+\.py)` \|$", text, re.MULTILINE)
    assert len(answers) >= 30
    assert [name for name in answers if not (ROOT / "src/zeropull" / name).is_file()] == []


def test_packages_are_the_parts_list() -> None:
    listed = (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8")
    for package in sorted((ROOT / "src/zeropull").iterdir()):
        if (package / "__init__.py").exists():
            assert f"`zeropull.{package.name}`" in listed, package.name


def test_the_reference_pages_are_what_the_code_says() -> None:
    script = [sys.executable, str(ROOT / "scripts/reference.py"), "--check"]
    checked = subprocess.run(script, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_toml_and_python_example_is_taken(tmp_path: Path) -> None:
    """TOML examples are read as configuration; Python ones are at least compiled (the acceptance
    tests run the same calls)."""
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for number, example in enumerate(re.findall(r"```toml\n(.*?)```", text, re.DOTALL)):
            path = tmp_path / f"{document.stem}{number}.toml"
            path.write_text(example)
            load_settings(config=path, environment={}, flags={})
        for example in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            compile(example, str(document), "exec")


def test_every_command_that_a_document_names_exists() -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for name in re.findall(r"`(?:\.venv/bin/)?zeropull ([a-z]+)", text):
            assert name in known, f"{document.name}: zeropull {name}"
