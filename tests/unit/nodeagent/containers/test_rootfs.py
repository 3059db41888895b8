"""Files of the root file system are read from its layers without following links."""

from __future__ import annotations

from pathlib import Path

from zeropull.nodeagent.containers.rootfs import layer_directories, read_root_file


def test_the_uppermost_layer_wins(tmp_path: Path) -> None:
    for name in ("upper", "lower"):
        (tmp_path / name / "etc").mkdir(parents=True)
    (tmp_path / "lower/etc/passwd").write_text("lower")
    options = ["index=off", f"lowerdir={tmp_path}/lower", f"upperdir={tmp_path}/upper"]
    layers = layer_directories("overlay", "overlay", options)
    assert layers == [tmp_path / "upper", tmp_path / "lower"]
    assert read_root_file(layers, "etc", "passwd") == "lower"
    (tmp_path / "upper/etc/passwd").write_text("upper")
    assert read_root_file(layers, "etc", "passwd") == "upper"


def test_links_never_lead_to_the_nodes_own_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a/etc").symlink_to("/etc")
    assert read_root_file([tmp_path / "a"], "etc", "passwd") == ""
    (tmp_path / "b/etc").mkdir()
    (tmp_path / "b/etc/passwd").symlink_to("/etc/passwd")
    assert read_root_file([tmp_path / "b"], "etc", "passwd") == ""
