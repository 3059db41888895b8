"""The gateway runs on uvloop, as its process does."""

from __future__ import annotations

import asyncio

import pytest
import uvloop


@pytest.fixture(scope="package")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()
