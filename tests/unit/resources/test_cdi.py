"""CDI specifications and what they do to an OCI runtime spec."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from zeropull.errors import ConfigurationError, NotFound
from zeropull.resources.cdi import (
    apply_cdi,
    device_names,
    parse_spec,
    read_specs,
    scan_specs,
)

YAML = """
cdiVersion: 0.6.0
kind: nvidia.com/gpu
containerEdits:
  env: [COMMON=1]
  intelRdt: {closID: x}
  mounts:
    - {hostPath: /usr/lib/libcuda.so, containerPath: /usr/lib/libcuda.so, options: [ro, bind]}
  hooks:
    - {hookName: createContainer, path: /usr/bin/hook, args: [hook, ldcache]}
devices:
  - name: 0
    containerEdits:
      deviceNodes: [{path: /dev/nvidia0, hostPath: /dev/null}]
  - name: 1
    containerEdits:
      deviceNodes: [{path: /dev/zero, permissions: rw, fileMode: 438, uid: 3}]
      additionalGids: [0, 44]
  - name: all
    containerEdits: {}
"""


def test_devices_are_listed_by_their_full_names_without_the_sum_of_all() -> None:
    spec = parse_spec(YAML, "gpu.yaml")
    assert device_names([spec]) == ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]
    assert device_names([spec], "other.com/gpu") == []


def test_edits_of_a_device_and_of_its_specification_are_applied_once() -> None:
    before: dict[str, Any] = {
        "process": {"env": ["COMMON=0", "PATH=/bin"], "user": {"uid": 5, "additionalGids": [7]}},
        "mounts": [{"destination": "/usr/lib/libcuda.so", "source": "/old"}],
        "linux": {"resources": {"devices": [{"allow": False, "access": "rwm"}]}},
    }
    after = apply_cdi(
        before, [parse_spec(YAML, "gpu.yaml")], ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]
    )

    assert after["process"]["env"] == ["PATH=/bin", "COMMON=1"]
    assert after["process"]["user"]["additionalGids"] == [7, 44]
    assert after["mounts"] == [
        {
            "destination": "/usr/lib/libcuda.so",
            "type": "bind",
            "source": "/usr/lib/libcuda.so",
            "options": ["ro", "bind"],
        }
    ]
    assert after["hooks"] == {
        "createContainer": [{"path": "/usr/bin/hook", "args": ["hook", "ldcache"]}]
    }
    assert after["linux"]["devices"] == [
        {"path": "/dev/nvidia0", "type": "c", "major": 1, "minor": 3, "uid": 5},
        {"path": "/dev/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 438, "uid": 3},
    ]
    assert after["linux"]["resources"]["devices"][1:] == [
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
        {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rw"},
    ]
    assert before["process"]["env"] == ["COMMON=0", "PATH=/bin"]


def test_an_unknown_device_names_the_known_ones() -> None:
    with pytest.raises(NotFound, match=r"nvidia.com/gpu=0, nvidia.com/gpu=1"):
        apply_cdi({}, [parse_spec(YAML, "gpu.yaml")], ["nvidia.com/gpu=9"])


def test_a_device_without_its_node_on_the_host_is_refused() -> None:
    def stat_nothing(path: str) -> os.stat_result:
        raise FileNotFoundError(2, "No such file or directory", path)

    with pytest.raises(NotFound, match="/dev/null"):
        apply_cdi({}, [parse_spec(YAML, "gpu.yaml")], ["nvidia.com/gpu=0"], stat_nothing)


def test_a_plain_file_is_no_device(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    spec = parse_spec(YAML.replace("/dev/null", str(file)), "gpu.yaml")
    with pytest.raises(ConfigurationError, match="not a device"):
        apply_cdi({}, [spec], ["nvidia.com/gpu=0"])


def test_a_later_folder_wins_and_equal_ones_conflict(tmp_path: Path) -> None:
    for folder, variable in (("etc", "A=1"), ("run", "A=2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "gpu.yaml").write_text(YAML.replace("COMMON=1", variable))
    specs = read_specs([tmp_path / "etc", tmp_path / "run", tmp_path / "missing"])
    assert apply_cdi({}, specs, ["nvidia.com/gpu=0"])["process"]["env"] == ["A=2"]
    with pytest.raises(ConfigurationError, match="more than once"):
        apply_cdi({}, [specs[1], parse_spec(YAML, "b.yaml", 1)], ["nvidia.com/gpu=0"])


def test_a_broken_file_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.yaml").write_text(YAML)
    (tmp_path / "c.json").write_text('{"cdiVersion": "9.0.0", "kind": "a/b"}')
    specs, problems = scan_specs([tmp_path])
    assert len(specs) == 1
    assert len(problems) == 2


def test_an_edit_of_the_wrong_form_is_a_configuration_error() -> None:
    text = '{"cdiVersion": "0.5.0", "kind": "a/b", "devices": [{"name": "x", "containerEdits": {"mounts": [{}]}}]}'  # noqa: E501
    with pytest.raises(ConfigurationError, match="bad edit"):
        apply_cdi({}, [parse_spec(text, "x.json")], ["a/b=x"])
