"""Which rung this machine can stand on: how readers of an arriving layer are made to wait."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from zeropull.delivery import fuse_files
from zeropull.linux import precontent

RungName = Literal["fanotify", "fuse", "whole"]
Choice = Literal["auto", "fanotify", "fuse", "whole"]


def choose_rung(folder: Path, choice: Choice) -> RungName:
    """The first rung that works for files in `folder`; `choice` other than "auto" is taken as it
    is."""
    if choice != "auto":
        return choice
    if precontent.is_supported(folder):
        return "fanotify"
    return "fuse" if fuse_files.is_supported() else "whole"


def describe(rung: RungName) -> str:
    """For people: what it means for a launch."""
    match rung:
        case "fanotify":
            return "containers start before their image has arrived (pre-content events)"
        case "fuse":
            return "containers start before their image has arrived (FUSE; slower while it comes)"
        case "whole":
            return "images are transferred whole before containers start: no Linux 6.14, no FUSE"
