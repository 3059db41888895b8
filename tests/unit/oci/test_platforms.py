from __future__ import annotations

import pytest

from zeropull.oci.platforms import Platform


@pytest.mark.parametrize(
    ("wanted", "offered", "rank"),
    [
        ("linux/amd64", "linux/amd64", 0),
        ("linux/amd64", "linux/amd64/v1", 0),
        ("linux/amd64", "linux/amd64/v2", None),
        ("linux/amd64/v3", "linux/amd64/v2", 1),
        ("linux/amd64/v3", "linux/amd64/3", 0),
        ("linux/amd64/v3", "linux/amd64", 2),
        ("linux/amd64/v3", "linux/386", 10),
        ("linux/amd64", "linux/x86_64", 0),
        ("linux/amd64", "Linux/AMD64", 0),
        ("linux/amd64", "/amd64", 0),
        ("linux/amd64", "windows/amd64", None),
        ("linux/amd64", "unknown/unknown", None),
        ("linux/amd64", "linux/arm64", None),
        ("linux/arm64", "linux/aarch64", 0),
        ("linux/arm64", "linux/arm64/v8", 0),
        ("linux/arm64/v8", "linux/arm64", 0),
        ("linux/arm/v7", "linux/armhf", 0),
        ("linux/arm/v7", "linux/arm/v6", None),
    ],
)
def test_platforms_are_ranked_as_containerd_ranks_them(
    wanted: str, offered: str, rank: int | None
) -> None:
    assert Platform.parse(wanted).rank(Platform.parse(offered)) == rank
