"""A fleet for every test of the local provider."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fixtures.local_fleet import Fleet, running_fleet
from zeropull.resources.settings import FleetSettings

if os.geteuid() != 0:
    pytest.skip("needs root", allow_module_level=True)


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running_fleet(tmp_path, FleetSettings()) as running:
        yield running
