"""The OCI spec follows from image, assignment and host."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from zeropull.errors import ImageError
from zeropull.nodeagent.containers.oci_spec import (
    BindMount,
    HostLimits,
    ImageConfig,
    SpecInputs,
    build_spec,
    parse_image_config,
)
from zeropull.nodeagent.containers.users import User

HOST = HostLimits(20_000, 100, "x86_64", cgroup_v2=False, may_exceed=False)
INPUTS = SpecInputs(
    container_id="copy-1",
    image=ImageConfig(
        entrypoint=("python", "server.py"), cmd=("train",), env=("A=image", "B=image", "PATH=/x")
    ),
    user=User(1000, 1000, (44,), "/home/model"),
    hostname="model-1",
    cgroups_path="/zeropull/copy-1",
    network_namespace="/run/netns/zp-1",
    environment={"A": "assignment"},
    platform_env={"B": "platform"},
    mounts=(
        BindMount("/n/extra", "/opt/ml/model/extra"),
        BindMount("/n/model", "/opt/ml/model"),
    ),
    shm_bytes=1 << 26,
    cpu_cores=1.5,
    memory_bytes=1 << 30,
    pids=100,
)


def spec_of(host: HostLimits = HOST, **changes: Any) -> dict[str, Any]:
    return build_spec(dataclasses.replace(INPUTS, **changes), host)


def test_serve_replaces_cmd_and_the_entrypoint_is_kept() -> None:
    assert spec_of()["process"]["args"] == ["python", "server.py", "serve"]
    assert spec_of(image=ImageConfig(cmd=("x",)))["process"]["args"] == ["serve"]


def test_the_assignment_wins_over_the_platform_and_that_over_the_image() -> None:
    environment = spec_of()["process"]["env"]
    assert {"A=assignment", "B=platform", "PATH=/x", "HOME=/home/model"} <= set(environment)
    assert len(environment) == len({line.partition("=")[0] for line in environment})


def test_limits_become_cgroup_values() -> None:
    resources = spec_of()["linux"]["resources"]
    assert resources["cpu"]["quota"] == 150_000
    assert resources["memory"] == {"limit": 1 << 30}
    assert resources["pids"] == {"limit": 100}
    assert resources["devices"] == [{"allow": False, "access": "rwm"}]


def test_rlimits_and_oom_score_stay_within_what_is_inherited() -> None:
    process = spec_of()["process"]
    assert process["rlimits"] == [{"type": "RLIMIT_NOFILE", "hard": 20_000, "soft": 20_000}]
    assert process["oomScoreAdj"] == 100
    free = dataclasses.replace(HOST, may_exceed=True)
    assert spec_of(free)["process"]["rlimits"][0]["hard"] == 1_048_576
    assert spec_of(free)["process"]["oomScoreAdj"] == 0


def test_models_are_read_only_and_mounted_after_their_parents() -> None:
    mounts = {mount["destination"]: mount for mount in spec_of()["mounts"]}
    targets = [each for each in mounts if each.startswith("/opt")]
    assert targets == ["/opt/ml/model", "/opt/ml/model/extra"]
    assert "ro" in mounts["/opt/ml/model"]["options"]
    assert f"size={1 << 26}" in mounts["/dev/shm"]["options"]
    assert "ro" in mounts["/sys"]["options"]


def test_a_cgroup_namespace_is_made_on_v2_only() -> None:
    def kinds(host: HostLimits) -> set[str]:
        return {each["type"] for each in spec_of(host)["linux"]["namespaces"]}

    assert "cgroup" not in kinds(HOST)
    assert "cgroup" in kinds(dataclasses.replace(HOST, cgroup_v2=True))


def test_the_container_is_confined_like_containerds_own() -> None:
    spec = spec_of()
    assert spec["process"]["noNewPrivileges"] is False
    assert len(spec["process"]["capabilities"]["bounding"]) == 14
    assert "CAP_SYS_ADMIN" not in spec["process"]["capabilities"]["bounding"]
    assert "/proc/kcore" in spec["linux"]["maskedPaths"]
    allowed = {
        name
        for rule in spec["linux"]["seccomp"]["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule
        for name in rule["names"]
    }
    assert {"read", "execve", "arch_prctl"} <= allowed
    assert not allowed & {"mount", "bpf", "unshare", "setns", "io_uring_setup", "kexec_load"}


def test_new_privileges_can_be_forbidden() -> None:
    spec = build_spec(dataclasses.replace(INPUTS, no_new_privileges=True), HOST)
    assert spec["process"]["noNewPrivileges"] is True


def test_a_relative_working_folder_is_refused() -> None:
    with pytest.raises(ImageError, match="WORKDIR"):
        spec_of(image=ImageConfig(working_dir="srv"))


def test_the_image_config_is_read_as_docker_writes_it() -> None:
    document = {"architecture": "amd64", "config": {"User": "model", "Cmd": None, "Env": ["A=1"]}}
    config = parse_image_config(json.dumps(document).encode())
    assert (config.user, config.cmd, config.env) == ("model", (), ("A=1",))
    with pytest.raises(ImageError):
        parse_image_config(b"[]")


@pytest.mark.parametrize(
    "config",
    [
        {"User": 5},
        {"Entrypoint": "python"},
        {"Entrypoint": [1]},
        {"Env": {"A": "b"}},
        {"Env": ["A=b\0c"]},
        {"WorkingDir": ["/"]},
    ],
)
def test_a_config_of_other_types_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ImageError, match="the image's config"):
        parse_image_config(json.dumps({"config": config}).encode())


def test_a_config_of_endless_brackets_is_refused() -> None:
    with pytest.raises(ImageError, match="not an OCI image config"):
        parse_image_config(b'{"x": ' + b"[" * 1_000_000)
