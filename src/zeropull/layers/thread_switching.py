"""Lets the threads of a pull have the interpreter soon after they ask for it."""

from __future__ import annotations

import sys

# Inflating asks for the interpreter lock twice per MiB. Whoever holds it in Python code gives it up
# only after the switch interval: Python's own 5 ms is the time in which 2 MB are inflated.
SWITCH_INTERVAL_S = 0.000_5


def switch_threads_often() -> None:
    """From now on, threads of this process wait at most 0.5 ms for one that computes in Python.

    For the life of the process: a pull makes layers in its threads, or feeds those who do, and the
    next one would ask for the same.
    """
    sys.setswitchinterval(min(SWITCH_INTERVAL_S, sys.getswitchinterval()))
