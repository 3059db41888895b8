"""Which copy holds a session."""

from __future__ import annotations

from zeropull.gateway.sessions import MAX_SESSIONS, Sessions


def test_a_session_belongs_to_the_copy_that_began_it_until_it_is_closed() -> None:
    sessions = Sessions()
    sessions.open(b"s", "copy-1")
    assert sessions.copy_of("s") == "copy-1"
    assert sessions.copy_of("other") is None
    sessions.close(b"s")
    sessions.close(b"s")
    assert sessions.copy_of("s") is None


def test_sessions_are_bounded_and_the_one_not_used_for_longest_goes_first() -> None:
    sessions = Sessions()
    for number in range(MAX_SESSIONS):
        sessions.open(b"%d" % number, "copy")
    assert sessions.copy_of("0") == "copy"
    sessions.open(b"one more", "copy")
    assert len(sessions) == MAX_SESSIONS
    assert sessions.copy_of("0") == "copy"
    assert sessions.copy_of("1") is None
