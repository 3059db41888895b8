"""The local fleet: every instance is a node of its own on this machine."""

from __future__ import annotations

from zeropull.providers.local.provider import LocalProvider

__all__ = ["LocalProvider"]
