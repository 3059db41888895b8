from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.unit.cli.statuses import HOSTILE
from zeropull.cli.doctor import findings_table
from zeropull.providers.local.machine import Finding, Verdict


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_program_says_is_no_markup(text: str) -> None:
    out = io.StringIO()
    console = Console(file=out, width=1000, force_terminal=True, color_system=None)
    console.print(findings_table([Finding(text, Verdict.REDUCED, text, text, text)]))
    expected = text.replace("\x1b", "?").replace("\x07", "?")
    assert out.getvalue().count(expected) == 4
    assert "reduced" in out.getvalue()
