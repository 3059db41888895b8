"""Where settings come from, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from zeropull.cli.config import load_settings
from zeropull.errors import ConfigurationError
from zeropull.resources.settings import Settings


def settings_of(
    tmp_path: Path,
    toml: str = "",
    environment: dict[str, str] | None = None,
    flags: dict[str, Any] | None = None,
) -> Settings:
    file = tmp_path / "zeropull.toml"
    file.write_text(toml)
    return load_settings(config=file, environment=environment or {}, flags=flags or {})


def test_defaults_hold_when_nothing_is_given(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    assert (settings.serve.host, settings.serve.port) == ("127.0.0.1", 8440)
    assert str(settings.run_dir).startswith("/run/zeropull/")
    assert len(settings.run_dir.name) == 8


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    toml = '[serve]\nport = 1\nregion = "eu-west-1"\nlog_level = "debug"\n'
    environment = {"ZEROPULL_SERVE_PORT": "2", "ZEROPULL_SERVE_REGION": "eu-north-1"}
    settings = settings_of(tmp_path, toml, environment, {"serve.port": 3, "serve.region": None})
    assert settings.serve.port == 3
    assert settings.serve.region == "eu-north-1"
    assert settings.serve.log_level == "debug"


def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"serve\.prot; .* serve\.port"):
        settings_of(tmp_path, "[serve]\nprot = 1\n")


def test_an_unknown_key_inside_a_named_table_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nearest known key is buckets.*endpoint"):
        settings_of(tmp_path, '[buckets.models]\nendpoit = "http://x"\n')


def test_a_value_of_the_wrong_type_names_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"serve\.port = 'many': expected int, got str"):
        settings_of(tmp_path, '[serve]\nport = "many"\n')
    with pytest.raises(ConfigurationError, match=r"serve = 3: expected object, got int"):
        settings_of(tmp_path, "serve = 3\n")


def test_a_secret_of_the_wrong_type_is_not_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"registries.*password") as refused:
        settings_of(tmp_path, '[registries."registry.example.com"]\npassword = 1234567\n')
    assert "1234567" not in str(refused.value)


def test_an_unknown_environment_variable_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="did you mean ZEROPULL_SERVE_PORT"):
        settings_of(tmp_path, environment={"ZEROPULL_SERVE_PROT": "1"})


def test_the_gateway_token_cannot_come_from_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="gateway_token"):
        settings_of(tmp_path, 'gateway_token = "x"\n')


def test_a_missing_file_is_an_error_when_it_was_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        load_settings(config=tmp_path / "none.toml", environment={}, flags={})


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ('ca_file = "/nonexistent.pem"', "ca_file = '/nonexistent.pem': expected a file in PEM"),
        ('mirrors = ["mirror.example"]', "mirrors = 'mirror.example': expected http"),
        ('mirrors = ["https://m.example/?x=1"]', "expected http"),
        ('key_file = "/etc/hosts"', "expected a cert_file beside it"),
    ],
)
def test_what_a_registry_cannot_use_is_refused_at_the_start(
    tmp_path: Path, members: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        settings_of(tmp_path, f'[registries."r.example"]\n{members}\n')


def test_a_registry_may_have_mirrors_and_certificates(tmp_path: Path) -> None:
    toml = (
        '[registries."docker.io"]\nmirrors = ["http://[::1]:5000", "https://m.example/hub"]\n'
        'ca_file = "/etc/hosts"\ncert_file = "/etc/hosts"\nkey_file = "/etc/hosts"\n'
    )
    assert len(settings_of(tmp_path, toml).registries["docker.io"].mirrors) == 2


@pytest.mark.parametrize(
    "members", ['endpoint = "127.0.0.1:9000"', 'access_key_id = "key\\n"', 'session_token = " t"']
)
def test_a_bucket_that_cannot_be_asked_is_refused_at_the_start(
    tmp_path: Path, members: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"buckets\.m\.{members.split()[0]}"):
        settings_of(tmp_path, f"[buckets.m]\n{members}\n")
