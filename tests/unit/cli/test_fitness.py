"""What `serve` refuses before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from zeropull.cli import fitness
from zeropull.cli.config import load_settings
from zeropull.errors import ConfigurationError, DiskFull, Unavailable
from zeropull.resources.settings import Settings


def settings(state_dir: Path, **flags: object) -> Settings:
    return load_settings(
        config=None, environment={}, flags={"serve.state_dir": str(state_dir), **flags}
    )


@pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
def test_a_state_directory_that_nothing_can_be_mounted_from_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(fitness, "file_system_of", lambda place: kind)
    with pytest.raises(ConfigurationError, match=rf"on {kind}.*--state-dir"):
        fitness.refuse_unfit_machine(settings(tmp_path / "s"))


def test_a_file_is_no_state_directory(tmp_path: Path) -> None:
    (tmp_path / "s").touch()
    with pytest.raises(ConfigurationError, match="not a folder"):
        fitness.refuse_unfit_machine(settings(tmp_path / "s"))


def test_a_missing_program_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitness, "file_system_of", lambda place: "ext4")
    with pytest.raises(Unavailable, match=r"absent-containerd is not on PATH.*install containerd"):
        fitness.refuse_unfit_machine(
            settings(tmp_path, **{"fleet.containerd": "absent-containerd"})
        )


def test_a_full_disk_is_refused_with_the_arithmetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitness, "file_system_of", lambda place: "ext4")
    monkeypatch.setattr(fitness, "_MIN_FREE_BYTES", 1 << 60)
    with pytest.raises(DiskFull, match="bytes free"):
        fitness.refuse_unfit_machine(settings(tmp_path))
    settings(tmp_path).database.touch()  # a state: its endpoints can be deleted
    fitness.refuse_unfit_machine(settings(tmp_path))


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
