"""What the processor of this machine runs (uname(2), /proc/cpuinfo).

The levels of amd64 are those of the x86-64 psABI (https://gitlab.com/x86-psABIs/x86-64-ABI,
"Micro-Architecture Levels"), with the names that the kernel gives to the features.
"""

from __future__ import annotations

import platform
from collections.abc import Collection
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# What each level needs beyond the one below it. `pni` is SSE3, `abm` includes LZCNT.
_LEVELS: tuple[frozenset[str], ...] = (
    frozenset({"cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3"}),
    frozenset({"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}),
    frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
)


@cache
def native_platform() -> str:
    """`linux/amd64/v3`, `linux/arm64`: what this machine runs at best, in OCI's names."""
    architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
    if architecture != "amd64":
        return f"linux/{architecture}"
    return f"linux/amd64/v{amd64_level(_flags())}"


def amd64_level(flags: Collection[str]) -> int:
    """The highest level, 1 to 4, whose features are all among the kernel's `flags`."""
    level = 1
    for needed in _LEVELS:
        if not needed <= frozenset(flags):
            break
        level += 1
    return level


def _flags() -> frozenset[str]:
    """Empty where the kernel does not tell: level 1 is then all that is certain."""
    try:
        text = _CPUINFO.read_text()
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())
