"""A launch that is cancelled while its thread still makes things."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from zeropull.providers.local.provider import LocalProvider
from zeropull.providers.protocol import LaunchRequest, MachineShape
from zeropull.resources.settings import FleetSettings

INSTANCE = "i-" + "0" * 17


async def test_an_instance_is_not_dismantled_while_it_is_still_being_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = LocalProvider(FleetSettings(), tmp_path / "s", tmp_path / "r")
    making, may_end = threading.Event(), threading.Event()
    steps: list[str] = []

    def assemble(*arguments: object) -> list[str]:
        making.set()
        may_end.wait(5)
        steps.append("made")
        return []

    monkeypatch.setattr(provider, "_reserve", lambda *arguments: None)
    monkeypatch.setattr(provider, "_assemble", assemble)
    monkeypatch.setattr(provider, "_dismantle", lambda *arguments: steps.append("dismantled"))
    launch = asyncio.create_task(
        provider.launch(LaunchRequest(INSTANCE, MachineShape("ml.m5.large", 2, 1 << 30), "token"))
    )
    await asyncio.to_thread(making.wait, 5)
    launch.cancel()
    ending = asyncio.create_task(provider.terminate(INSTANCE))
    launch.cancel()
    await asyncio.wait([ending], timeout=0.05)
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await launch
    await ending
    assert steps == ["made", "dismantled"]
