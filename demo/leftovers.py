"""Proof that nothing is left: what of a zeropull is still on this machine."""

from __future__ import annotations

from pathlib import Path

import psutil


def find_leftovers(state_dir: Path, run_dir: Path) -> list[str]:
    """A line for every mount, process, network namespace, cgroup or file that should be gone."""
    marks = (str(state_dir), str(run_dir))
    return [
        *_mounts(marks),
        *_processes(marks),
        *_instances_in(Path("/run/netns"), "network namespace", state_dir),
        *_cgroups(),
        *_files(state_dir),
        *_runtime_state(),
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


def _instances_in(folder: Path, what: str, state_dir: Path) -> list[str]:
    if not folder.exists():
        return []
    known = {path.name for path in (state_dir / "instances").glob("*")}
    return [f"{what} {entry.name}" for entry in folder.iterdir()
            if entry.name.startswith("zp") or entry.name in known]  # fmt: skip


def _cgroups() -> list[str]:
    return [f"cgroup {path}" for path in Path("/sys/fs/cgroup").glob("**/zeropull*")]


def _files(state_dir: Path) -> list[str]:
    """What an endpoint had: its instances' disks and its image cache."""
    kept = []
    for name in ("instances", "caches"):
        kept += [f"file {path}" for path in (state_dir / name).glob("**/*") if path.is_file()][:5]
    return kept


def _runtime_state() -> list[str]:
    return [f"runc state {path}" for path in Path("/run/containerd/runc").glob("zeropull-*")]
