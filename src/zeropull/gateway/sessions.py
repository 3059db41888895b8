"""Stateful sessions: which copy holds the state of each.

Source: "Stateful sessions with Amazon SageMaker models". A container begins a session in the answer
to a request with SessionId NEW_SESSION; requests with its ID go to the same copy.
"""

from __future__ import annotations

from collections import OrderedDict

MAX_SESSIONS = 10_000  # of one variant or component; the one not used for longest goes first


class Sessions:
    """Session ID -> copy. The container says when a session is over; nothing here expires."""

    __slots__ = ("_copies",)

    def __init__(self) -> None:
        self._copies: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._copies)

    def open(self, session_id: bytes, copy_id: str) -> None:
        self._copies[session_id.decode("latin-1")] = copy_id
        while len(self._copies) > MAX_SESSIONS:
            self._copies.popitem(last=False)

    def close(self, session_id: bytes) -> None:
        self._copies.pop(session_id.decode("latin-1"), None)

    def copy_of(self, session_id: str) -> str | None:
        """None for a session that no copy has begun, as far as this gateway knows."""
        copy_id = self._copies.get(session_id)
        if copy_id is not None:
            self._copies.move_to_end(session_id)
        return copy_id
