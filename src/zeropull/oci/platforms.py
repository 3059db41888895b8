"""Platforms of images, and which of several offered ones a machine runs best.

Names are compared as containerd compares them: in lower case, with its aliases
(https://github.com/containerd/platforms, `database.go` and `compare.go`). The levels of amd64 are
those of the x86-64 psABI (https://gitlab.com/x86-psABIs/x86-64-ABI, "Micro-Architecture Levels").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "i486": "386",
    "i586": "386",
    "i686": "386",
    "armhf": "arm",
    "armel": "arm",
}
_SYSTEMS = {"": "linux", "macos": "darwin"}
# The variant that a name without one means.
_DEFAULT_VARIANTS = {"amd64": "v1", "arm64": "v8", "armhf": "v7", "armel": "v6", "arm": "v7"}
_LEVEL = re.compile(r"v?([1-9])")


@dataclass(frozen=True, slots=True)
class Platform:
    """`linux/amd64`, `linux/arm64/v8`. As a wish, an empty variant fits every variant but those of
    amd64 above v1: these name processors that not everybody has."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        parts = [*text.split("/"), "", ""]
        return cls(parts[0], parts[1], parts[2])

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    @property
    def is_known(self) -> bool:
        """Whether it says for which processor something is built."""
        return bool(self.architecture)

    def rank(self, offered: Platform) -> int | None:
        """How well something built for `offered` runs where `self` is wanted: 0 is best, None is
        not at all."""
        wanted, given = _normal(self), _normal(offered)
        if wanted.os != given.os:
            return None
        if wanted.architecture == "amd64" and given.architecture == "386":
            return 10  # as containerd: behind every level of amd64
        if wanted.architecture != given.architecture:
            return None
        if wanted.architecture == "amd64":
            return _level_rank(wanted.variant, given.variant)
        if not self.variant or wanted.variant == given.variant:
            return 0
        return 1 if not offered.variant else None

    def fits(self, offered: Platform) -> bool:
        return self.rank(offered) is not None


def _normal(platform: Platform) -> Platform:
    system, name = platform.os.lower(), platform.architecture.lower()
    architecture = _ARCHITECTURES.get(name, name)
    default = _DEFAULT_VARIANTS.get(name) or _DEFAULT_VARIANTS.get(architecture, "")
    variant = platform.variant.lower() or default
    match = _LEVEL.fullmatch(variant)
    return Platform(
        _SYSTEMS.get(system, system), architecture, f"v{match[1]}" if match else variant
    )


def _level_rank(wanted: str, given: str) -> int | None:
    """A processor runs what is built for its own level of amd64 and for all below it."""
    if wanted == given:
        return 0
    both = _LEVEL.fullmatch(wanted), _LEVEL.fullmatch(given)
    if both[0] is None or both[1] is None:
        return None
    distance = int(both[0][1]) - int(both[1][1])
    return distance if distance >= 0 else None
