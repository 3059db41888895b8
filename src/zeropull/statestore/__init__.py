"""Desired and observed state, in SQLite. Only the control plane opens it."""

from zeropull.statestore.store import Store, Stored

__all__ = ["Store", "Stored"]
