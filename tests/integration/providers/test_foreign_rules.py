"""Other people's firewalls, in a network namespace that stands for the host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from zeropull.linux.network_namespaces import create_netns, delete_netns, in_netns
from zeropull.providers.local.foreign_rules import forget_foreign_chains, pass_foreign_chains


@pytest.fixture
def host() -> Iterator[str]:
    name = f"zp-test-{os.getpid()}"
    create_netns(name)
    try:
        yield name
    finally:
        delete_netns(name)


def test_dockers_policy_is_passed_and_left_as_it_was(host: str) -> None:
    def look() -> list[str]:
        return _iptables("-S")

    def set_up() -> None:
        _iptables("-P", "FORWARD", "DROP")
        _iptables("-N", "DOCKER-USER")
        _iptables("-A", "FORWARD", "-j", "DOCKER-USER")

    in_netns(host, set_up)
    before = in_netns(host, look)

    in_netns(host, lambda: pass_foreign_chains("zpabcde", "abcdef01"))
    once = in_netns(host, look)
    in_netns(host, lambda: pass_foreign_chains("zpabcde", "abcdef01"))

    assert [line for line in once if line.startswith("-A DOCKER-USER -i zpabcde+")]
    assert [line for line in once if line.startswith("-A DOCKER-USER -o zpabcde+")]
    assert in_netns(host, look) == once
    in_netns(host, lambda: forget_foreign_chains("abcdef01"))
    assert in_netns(host, look) == before


def test_a_host_without_iptables_rules_gets_none(host: str) -> None:
    in_netns(host, lambda: pass_foreign_chains("zpabcde", "abcdef01"))
    tables = in_netns(
        host,
        lambda: (
            subprocess.run(
                ["nft", "list", "tables"], capture_output=True, text=True, check=True
            ).stdout
        ),
    )
    assert tables == ""


def _iptables(*arguments: str) -> list[str]:
    result = subprocess.run(
        ["iptables-nft", "-w", *arguments], capture_output=True, text=True, check=True
    )
    return result.stdout.splitlines()
