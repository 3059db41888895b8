"""All tests together leave nothing on the host that was not there before.

The process that a person starts looks at the host before the first and after the last test; where
tests are spread over workers (`-n 2`), these are processes of their own and do not look.
"""

from __future__ import annotations

import os
import signal
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from tests.fixtures.leftovers import (
    MARK,
    Things,
    everything_on_host,
    left_behind,
    made_by_session,
    render,
)

# A machine that stalls for a moment is no failure.
settings.register_profile("any-speed", parent=settings(), deadline=None)
settings.load_profile("any-speed")


@dataclass
class _Watch:
    """One session's look at the host. `before` is empty where other tests may run beside it."""

    mark: str
    is_exclusive: bool
    before: Things
    left: Things

    def look(self, folder: Path) -> Things:
        own = made_by_session(self.mark, folder)
        if not self.is_exclusive:
            return own
        everything = everything_on_host()
        return everything | {"processes": everything["processes"] | own["processes"]}


_WATCH = pytest.StashKey[_Watch]()


def answer_interrupts() -> None:
    """Ctrl-C ends what a test starts, also where the tests themselves were started with SIGINT
    ignored (`nohup ./run test &`): a child inherits that, and some tests interrupt theirs."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Workers are started after this, and inherit the mark."""
    answer_interrupts()
    if hasattr(session.config, "workerinput"):
        return
    is_exclusive = bool(os.environ.get("CI") or os.environ.get("TESTS_EXCLUSIVE"))
    before = everything_on_host() if is_exclusive else {}
    os.environ[MARK] = mark = uuid.uuid4().hex
    session.config.stash[_WATCH] = _Watch(mark, is_exclusive, before, left={})


def pytest_keyboard_interrupt() -> None:
    """A person who interrupts the tests wants to see their failures, not ours."""
    os.environ.pop(MARK, None)


@pytest.hookimpl(trylast=True)  # the workers have ended
def pytest_sessionfinish(session: pytest.Session) -> None:
    watch = session.config.stash.get(_WATCH, None)
    if watch is None or os.environ.pop(MARK, None) is None:
        return
    factory: pytest.TempPathFactory = session.config._tmp_path_factory  # type: ignore[attr-defined]
    folder = factory.getbasetemp()
    watch.left = left_behind(watch.before, lambda: watch.look(folder))
    if watch.left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    watch = config.stash.get(_WATCH, None)
    if watch is not None and watch.left:
        terminalreporter.section("the tests left behind on this machine", red=True, bold=True)
        terminalreporter.line(render(watch.left))
