"""What `serve` refuses before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from zeropull.cli.config import load_settings
from zeropull.cli.fitness import refuse_unfit_machine
from zeropull.errors import ConfigurationError, DiskFull, Unavailable
from zeropull.resources.settings import Settings


def settings(state_dir: Path, **flags: object) -> Settings:
    return load_settings(
        config=None, environment={}, flags={"serve.state_dir": str(state_dir), **flags}
    )


def ext4(place: Path) -> str:
    return "ext4"


@pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
def test_a_state_directory_that_nothing_can_be_mounted_from_is_refused(
    tmp_path: Path, kind: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"on {kind}.*--state-dir"):
        refuse_unfit_machine(settings(tmp_path / "s"), kind_of=lambda place: kind)


def test_a_file_is_no_state_directory(tmp_path: Path) -> None:
    (tmp_path / "s").touch()
    with pytest.raises(ConfigurationError, match="not a folder"):
        refuse_unfit_machine(settings(tmp_path / "s"))


def test_a_missing_program_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"absent-containerd is not on PATH.*install containerd"):
        refuse_unfit_machine(
            settings(tmp_path, **{"fleet.containerd": "absent-containerd"}), kind_of=ext4
        )


def test_a_full_disk_is_refused_with_the_arithmetic(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="bytes free"):
        refuse_unfit_machine(settings(tmp_path), kind_of=ext4, min_free_bytes=1 << 60)
    settings(tmp_path).database.touch()  # a state: its endpoints can be deleted
    refuse_unfit_machine(settings(tmp_path), kind_of=ext4, min_free_bytes=1 << 60)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("serve.port", 99999),
        ("serve.log_level", "loud"),
        ("serve.account", "12"),
        ("serve.run_dir", "/run/" + "x" * 90),
        ("fleet.network", "10.0.0.0/25"),
        ("fleet.max_instances", -1),
        ("gateway.request_timeout_s", -1.0),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(
    tmp_path: Path, key: str, value: object
) -> None:
    with pytest.raises(ConfigurationError, match=key.replace(".", r"\.")):
        settings(tmp_path, **{key: value})
