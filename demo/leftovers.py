"""Proof that nothing is left: what of a zeropull is still on this machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil


def find_leftovers(state_dir: Path, run_dir: Path) -> list[str]:
    """A line for every mount, process, network namespace, rule, cgroup or file that should be gone.

    What belongs to another zeropull on this machine is told apart by the name of its run directory.
    """
    marks = (str(state_dir), str(run_dir))
    tag = run_dir.name
    return [
        *_mounts(marks),
        *_processes(marks),
        *(f"network namespace {path.name}" for path in Path("/run/netns").glob(f"zp-{tag}-*")),
        *(f"cgroup {path}" for path in Path("/sys/fs/cgroup").glob(f"**/zeropull-{tag}*")),
        *_rules(tag),
        *_files(state_dir),
    ]


def _mounts(marks: tuple[str, str]) -> list[str]:
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [f"mount {point}" for point in points if point.startswith(marks)]


def _processes(marks: tuple[str, str]) -> list[str]:
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if any(mark in command for mark in marks):
            found.append(f"process {process.info['pid']}: {command[:100]}")
    return found


def _rules(tag: str) -> list[str]:
    """Tables of ours in the packet filter."""
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
    return [f"packet filter {line}" for line in listed.stdout.splitlines() if tag in line]


def _files(state_dir: Path) -> list[str]:
    """What an endpoint had: its instances' disks and its image cache."""
    kept = []
    for name in ("instances", "caches"):
        kept += [f"file {path}" for path in (state_dir / name).glob("**/*") if path.is_file()][:5]
    return kept
