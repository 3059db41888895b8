"""Passing other people's FORWARD and INPUT rules, which an accept of our own does not overrule.

Docker sets the policy of FORWARD to drop and leaves the chain DOCKER-USER to its users; ufw drops
in FORWARD and INPUT. Both are spoken to by `iptables`: a native nftables rule in a table of
iptables-nft can make the whole table unreadable to iptables, and so break Docker.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

from zeropull.errors import Unavailable

_TIMEOUT_S = 20.0


def pass_foreign_chains(link_prefix: str, tag: str) -> None:
    """Accept what the fleet's own table decides about, wherever another table would drop it.

    Rules that are there stay: taking them away for a moment would cut running downloads.
    """
    for program in _programs_in_use():
        for rule in plan_rules(_listing(program), link_prefix, tag):
            if not _succeeds([program, "-w", "-C", *rule[1:]]):
                _run([program, "-w", *rule])


def forget_foreign_chains(tag: str) -> None:
    """Remove the rules again. Idempotent."""
    for program in _programs_in_use():
        for line in _listing(program):
            words = shlex.split(line)
            if words[0] == "-A" and _comment(tag) in words:
                _run([program, "-w", "-D", *words[1:]])


def plan_rules(listing: list[str], link_prefix: str, tag: str) -> list[list[str]]:
    """Arguments of iptables for what `iptables -S` shows, in the order in which to insert them."""
    links, comment = f"{link_prefix}+", ["-m", "comment", "--comment", _comment(tag)]
    answers = ["-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED"]
    rules: list[list[str]] = []
    if "-N DOCKER-USER" in listing:
        forward = "DOCKER-USER"
    elif "-P FORWARD DROP" in listing:
        forward = "FORWARD"
    else:
        forward = ""
    if forward:
        rules.append(["-I", forward, "-o", links, *answers, *comment, "-j", "ACCEPT"])
        rules.append(["-I", forward, "-i", links, *comment, "-j", "ACCEPT"])
    if "-P INPUT DROP" in listing:
        rules.append(["-I", "INPUT", "-i", links, *comment, "-j", "ACCEPT"])
    return rules


def _comment(tag: str) -> str:
    return f"zeropull-{tag}"


def _programs_in_use() -> list[str]:
    """Only back ends that have a filter table: asking the others would create one."""
    programs = []
    if shutil.which("iptables-legacy") and _legacy_filter_exists():
        programs.append("iptables-legacy")
    if shutil.which("iptables-nft") and "table ip filter" in _run(["nft", "list", "tables", "ip"]):
        programs.append("iptables-nft")
    return programs


def _legacy_filter_exists() -> bool:
    try:
        return "filter" in Path("/proc/thread-self/net/ip_tables_names").read_text().split()
    except OSError:
        return False


def _listing(program: str) -> list[str]:
    return _run([program, "-w", "-S"]).splitlines()


def _succeeds(command: list[str]) -> bool:
    result = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False)
    return result.returncode == 0


def _run(command: list[str]) -> str:
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    if result.returncode != 0:
        raise Unavailable(f"{shlex.join(command)}: {result.stderr.strip()}")
    return result.stdout
