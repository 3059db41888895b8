from __future__ import annotations

import platform

import pytest

from zeropull.linux.processor import amd64_level, native_platform

V2 = "cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3"
V3 = f"{V2} abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.mark.parametrize(
    ("flags", "level"),
    [("", 1), (V2, 2), (V3, 3), (V3.replace("movbe", ""), 2), (V4, 4), (V4.replace("pni", ""), 1)],
)
def test_a_level_needs_all_features_of_those_below_it(flags: str, level: int) -> None:
    assert amd64_level(flags.split()) == level


def test_this_machine_has_a_platform() -> None:
    names = {"x86_64": "linux/amd64/v", "aarch64": "linux/arm64"}
    assert native_platform().startswith(names.get(platform.machine(), "linux/"))
