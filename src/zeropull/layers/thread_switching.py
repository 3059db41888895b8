"""Lets the threads of a pull have the interpreter soon after they ask for it."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

# Inflating asks for the interpreter lock twice per MiB. Whoever holds it in Python code gives it up
# only after the switch interval: Python's own 5 ms is the time in which 2 MB are inflated.
SWITCH_INTERVAL_S = 0.000_5

_lock = threading.Lock()
_users = 0
_interval_before_s = 0.0


@contextlib.contextmanager
def short_switch_interval() -> Iterator[None]:
    """Threads that wait for the interpreter lock get it soon, while anybody is inside."""
    global _users, _interval_before_s
    with _lock:
        _users += 1
        if _users == 1:
            _interval_before_s = sys.getswitchinterval()
            sys.setswitchinterval(min(SWITCH_INTERVAL_S, _interval_before_s))
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                sys.setswitchinterval(_interval_before_s)
