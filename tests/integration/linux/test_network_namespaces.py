"""Real network namespaces, named by the test."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zeropull.errors import NotFound
from zeropull.linux.mounts import bind
from zeropull.linux.network_namespaces import (
    NETNS_DIR,
    create_netns,
    delete_netns,
    in_netns,
    list_netns,
    netns_exists,
    netns_identity,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")

_OWN = Path("/proc/thread-self/ns/net")


@pytest.fixture
def name() -> Iterator[str]:
    chosen = f"zptest-{secrets.token_hex(4)}"
    yield chosen
    delete_netns(chosen)


def identity_inside() -> tuple[int, int]:
    status = _OWN.stat()
    return status.st_dev, status.st_ino


def test_work_runs_inside_and_the_caller_stays_where_it_was(name: str) -> None:
    create_netns(name)
    before = identity_inside()
    assert in_netns(name, identity_inside) == netns_identity(name)
    assert identity_inside() == before


def test_making_it_twice_keeps_the_first(name: str) -> None:
    create_netns(name)
    first = netns_identity(name)
    create_netns(name)
    assert netns_identity(name) == first


def test_a_half_made_one_is_none_and_is_made_anew(name: str) -> None:
    (NETNS_DIR / name).touch()
    assert not netns_exists(name)
    assert list_netns(name) == [name]
    create_netns(name)
    assert netns_exists(name)


def test_deleting_takes_every_mount_of_the_name_and_may_be_repeated(name: str) -> None:
    create_netns(name)
    bind(NETNS_DIR / name, NETNS_DIR / name)
    delete_netns(name)
    delete_netns(name)
    assert list_netns(name) == []


def test_an_error_inside_reaches_the_caller(name: str) -> None:
    create_netns(name)
    with pytest.raises(ZeroDivisionError):
        in_netns(name, lambda: 1 // 0)


def test_a_missing_one_is_named(name: str) -> None:
    with pytest.raises(NotFound, match=name):
        in_netns(name, identity_inside)


def test_a_process_can_enter_for_good(name: str) -> None:
    create_netns(name)
    script = (
        "import os, sys; from zeropull.linux.network_namespaces import enter_netns;"
        "enter_netns(sys.argv[1]); print(os.stat('/proc/self/ns/net').st_ino)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script, name], capture_output=True, text=True, check=True
    )
    assert int(shown.stdout) == netns_identity(name)[1]
