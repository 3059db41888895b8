from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from tests.unit.cli.statuses import HOSTILE, status
from zeropull.admin.messages import Status
from zeropull.cli.status import show_explanation, show_status
from zeropull.errors import NotFound


def shown(show: Callable[[Console], None]) -> str:
    out = io.StringIO()
    # As in a terminal, where escape sequences would be obeyed.
    show(Console(file=out, width=1000, force_terminal=True, color_system=None))
    return out.getvalue()


def explanation(found: Status, name: str) -> str:
    return shown(lambda console: show_explanation(found, name, console))


@pytest.mark.parametrize("text", HOSTILE)
def test_what_comes_from_outside_is_shown_as_it_is(text: str) -> None:
    expected = text.replace("\x1b", "?").replace("\x07", "?")
    found = status(text)
    told = explanation(found, text)
    table = shown(lambda console: show_status(found, console))
    assert told.count(expected) == 17
    assert table.count(expected) == 8
    for written in (told, table):
        assert not any(control in written for control in ("\x1b]", "\x1b[31m", "\x07"))


def test_an_explanation_tells_state_reasons_and_decisions() -> None:
    lines = explanation(status("because"), "BECAUSE").splitlines()
    assert lines[0] == "because is Failed"
    assert "  because scales from 1 to 4" in lines
    assert any(line.endswith("because, policy because: wants 2") for line in lines)
    assert "  because is Failed, 0 of 2 copies serve: because" in lines
    assert "    because of because failed, 3 restarts: because" in lines


def test_an_endpoint_that_is_not_there_is_named() -> None:
    with pytest.raises(NotFound, match="there is no endpoint other"):
        explanation(status("demo"), "other")


def test_an_endpoint_without_instances_has_a_row() -> None:
    (endpoint,) = status("demo").endpoints
    found = Status("/state", "/run", (replace(endpoint, instances=()),), ())
    table = shown(lambda console: show_status(found, console))
    assert "demo" in table
    assert "generation 7" in table
