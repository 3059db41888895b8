"""The rung that readers wait on: what the user chose, else the first that works here."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from zeropull.delivery.ladder import RungName, choose_rung, describe


@pytest.mark.parametrize("rung", get_args(RungName))
def test_a_choice_is_taken_as_it_is(tmp_path: Path, rung: RungName) -> None:
    assert choose_rung(tmp_path, rung) == rung


def test_without_a_choice_there_is_always_one(tmp_path: Path) -> None:
    assert choose_rung(tmp_path, "auto") in get_args(RungName)
    assert list(tmp_path.iterdir()) == [], "the look leaves no file"


def test_only_a_whole_transfer_makes_containers_wait_for_their_image() -> None:
    told = {rung: describe(rung) for rung in get_args(RungName)}
    early = {rung for rung, text in told.items() if "before their image has arrived" in text}
    assert early == {"fanotify", "fuse"}
