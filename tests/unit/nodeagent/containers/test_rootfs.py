"""Files of the root file system are read from its layers; links never leave the root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zeropull.nodeagent.containers.rootfs import layer_directories, read_root_file


def layers_of(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name / "etc").mkdir(parents=True)
    return [folder / name for name in names]


def test_the_uppermost_layer_wins(tmp_path: Path) -> None:
    upper, lower = layers_of(tmp_path, "upper", "lower")
    (lower / "etc/passwd").write_text("lower")
    options = ["index=off", f"lowerdir={lower}", f"upperdir={upper}"]
    layers = layer_directories("overlay", "overlay", options)
    assert layers == [upper, lower]
    assert read_root_file(layers, "/etc/passwd") == "lower"
    (upper / "etc/passwd").write_text("upper")
    assert read_root_file(layers, "/etc/passwd") == "upper"


def test_links_never_lead_to_the_nodes_own_files(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("of the node")
    up = "../" * 50
    for number, target in enumerate([str(outside), up + str(outside)[1:], up + "etc/passwd"]):
        (root,) = layers_of(tmp_path, str(number))
        (root / "etc/passwd").symlink_to(target)
        assert read_root_file([root], "/etc/passwd") == ""
    (root,) = layers_of(tmp_path, "folder")
    (root / "etc").rmdir()
    (root / "etc").symlink_to("/etc")
    assert read_root_file([root], "/etc/passwd") == ""


def test_a_link_is_followed_within_the_root_and_through_the_layers(tmp_path: Path) -> None:
    """As Nix makes them: /etc/passwd leads into the store, which another layer has."""
    upper, lower = layers_of(tmp_path, "upper", "lower")
    (upper / "etc/passwd").symlink_to("/nix/store/abc-passwd/etc/passwd")
    (upper / "nix/store").mkdir(parents=True)
    (upper / "nix/store/abc-passwd").symlink_to("../../gnu/./store//abc")
    (lower / "gnu/store/abc/etc").mkdir(parents=True)
    (lower / "gnu/store/abc/etc/passwd").write_text("nix")
    assert read_root_file([upper, lower], "/etc/passwd") == "nix"


def test_a_linked_etc_is_followed(tmp_path: Path) -> None:
    (root,) = layers_of(tmp_path, "root")
    (root / "etc").rename(root / "real")
    (root / "etc").symlink_to("real")
    (root / "real/group").write_text("here")
    assert read_root_file([root], "etc/group") == "here"


def test_a_circle_of_links_is_no_file(tmp_path: Path) -> None:
    (root,) = layers_of(tmp_path, "root")
    (root / "etc/passwd").symlink_to("group")
    (root / "etc/group").symlink_to("passwd")
    (root / "etc/hosts").write_text("far")
    assert read_root_file([root], "/etc/passwd") == ""
    assert read_root_file([root], "etc/../" * 300 + "etc/hosts") == "far"
    assert read_root_file([root], "etc/../" * 600 + "etc/hosts") == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="whiteouts and opaque directories need root")
def test_whiteouts_and_opaque_directories_hide_what_is_below(tmp_path: Path) -> None:
    upper, lower = layers_of(tmp_path, "upper", "lower")
    (lower / "etc/passwd").write_text("lower")
    (lower / "etc/group").write_text("lower")
    os.mknod(upper / "etc/passwd", 0o20000, os.makedev(0, 0))
    assert read_root_file([upper, lower], "/etc/passwd") == ""
    assert read_root_file([upper, lower], "/etc/group") == "lower"
    os.setxattr(upper / "etc", "trusted.overlay.opaque", b"y")
    assert read_root_file([upper, lower], "/etc/group") == ""


def test_what_is_no_plain_file_is_not_read(tmp_path: Path) -> None:
    (root,) = layers_of(tmp_path, "root")
    os.mkfifo(root / "etc/passwd")
    (root / "etc/group").mkdir()
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert read_root_file([root], "/etc/passwd") == ""
    assert read_root_file([root], "/etc/group") == ""
    assert read_root_file([root], "/etc/group/x") == ""
    assert read_root_file([root], "/etc/" + "n" * 300) == ""
    assert len(list(Path("/proc/self/fd").iterdir())) == before
