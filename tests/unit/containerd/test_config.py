from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from zeropull.containerd.config import (
    ContainerdConfig,
    CriSettings,
    can_remap_ids,
    parse_version,
    render_config,
)
from zeropull.errors import ConfigurationError

CONFIG = ContainerdConfig(
    root=Path('/disk/a "quoted" name/root'),
    state=Path("/run/z/state"),
    socket=Path("/run/z/containerd.sock"),
    plugin_socket=Path("/run/z/snapshotter.sock"),
    plugin_root=Path("/disk/snapshotter"),
)


@pytest.mark.parametrize(("version", "number"), [((1, 6, 20), 2), ((1, 7, 0), 2), ((2, 3, 7), 3)])
def test_config_has_the_version_the_plugin_and_no_cri(
    version: tuple[int, int, int], number: int
) -> None:
    document = tomllib.loads(render_config(CONFIG, version))
    assert document["version"] == number
    assert document["root"] == '/disk/a "quoted" name/root'
    assert document["grpc"] == {"address": "/run/z/containerd.sock"}
    assert document["proxy_plugins"]["zeropull"] == {
        "type": "snapshot",
        "address": "/run/z/snapshotter.sock",
        "exports": {"root": "/disk/snapshotter"},
    }
    assert "io.containerd.grpc.v1.cri" in document["disabled_plugins"]


@pytest.mark.parametrize("version", [(1, 6, 20), (2, 3, 7)])
def test_cri_uses_the_plugin_for_every_image(version: tuple[int, int, int]) -> None:
    config = ContainerdConfig(
        CONFIG.root,
        CONFIG.state,
        CONFIG.socket,
        CONFIG.plugin_socket,
        CONFIG.plugin_root,
        cri=CriSettings("pause:1"),
    )
    document = tomllib.loads(render_config(config, version))
    assert "io.containerd.grpc.v1.cri" not in document["disabled_plugins"]
    plugins = document["plugins"]
    if version < (2, 0, 0):
        assert plugins["io.containerd.grpc.v1.cri"]["containerd"]["snapshotter"] == "zeropull"
    else:
        assert plugins["io.containerd.cri.v1.images"]["snapshotter"] == "zeropull"
        unpack = plugins["io.containerd.transfer.v1.local"]["unpack_config"]
        assert unpack == [
            {"platform": "linux", "snapshotter": "zeropull"},
            {"platform": "linux", "snapshotter": "overlayfs"},
        ]


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", (1, 6, 20)),
        ("containerd github.com/containerd/containerd/v2 v2.3.7 abc", (2, 3, 7)),
        ("containerd containerd.io 1.7.27 05044ec", (1, 7, 27)),
    ],
)
def test_versions_are_read(said: str, version: tuple[int, int, int]) -> None:
    assert parse_version(said) == version


@pytest.mark.parametrize("said", ["containerd", "containerd 1.5.9"])
def test_unknown_and_old_versions_are_refused(said: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_version(said)


def test_id_maps_are_declared_where_the_plugin_does_them() -> None:
    declared = tomllib.loads(render_config(replace(CONFIG, remap_ids=True), (2, 3, 7)))
    assert declared["proxy_plugins"]["zeropull"]["capabilities"] == ["remap-ids"]


@pytest.mark.parametrize(
    ("version", "release", "can"),
    [
        ((2, 3, 7), "6.18.44", True),
        ((2, 0, 0), "6.3.0-1-amd64", True),
        ((1, 7, 24), "6.18.44", False),
        ((2, 3, 7), "6.1.0-28-amd64", False),
        ((2, 3, 7), "unreadable", False),
    ],
)
def test_id_maps_need_containerd_2_and_linux_6_3(
    version: tuple[int, int, int], release: str, can: bool
) -> None:
    assert can_remap_ids(version, release) is can
