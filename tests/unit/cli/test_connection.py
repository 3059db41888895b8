from __future__ import annotations

from pathlib import Path

import pytest

from zeropull.api.keys import write_credentials_file
from zeropull.cli.connection import connection_lines
from zeropull.resources.accounts import StoredKey
from zeropull.resources.settings import ServeSettings, Settings

SECRET = "s3cr3t/with+signs"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    state_dir = tmp_path / "state of mine"
    state_dir.mkdir()
    key = StoredKey("AKIDEXAMPLE", SECRET, "000000000000", created_s=0.0)
    write_credentials_file(state_dir / "credentials", key, "us-east-1")
    return Settings(serve=ServeSettings(state_dir=str(state_dir)))


def test_a_terminal_gets_the_key(settings: Settings) -> None:
    lines = connection_lines(settings, "127.0.0.1:8080", is_private=True)
    assert f"export AWS_SECRET_ACCESS_KEY={SECRET}" in lines
    assert "export AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=http://127.0.0.1:8080" in lines
    assert not any(line.startswith("export AWS_ENDPOINT_URL=") for line in lines)


def test_a_log_gets_the_name_of_the_file_that_has_it(settings: Settings) -> None:
    lines = connection_lines(settings, "127.0.0.1:8080", is_private=False)
    assert SECRET not in "\n".join(lines)
    path = settings.state_dir / "credentials"
    assert f"export AWS_SHARED_CREDENTIALS_FILE='{path}'" in lines


@pytest.mark.parametrize(
    ("whole", "damaged"),
    [
        ("aws_access_key_id", "no_id"),
        ("[default]\n", ""),
        ("aws_secret_access_key = ", "aws_secret_access_key "),
    ],
)
def test_a_damaged_file_is_told_without_what_is_in_it(
    settings: Settings, whole: str, damaged: str
) -> None:
    path = settings.state_dir / "credentials"
    path.write_text(path.read_text().replace(whole, damaged))
    (line,) = connection_lines(settings, "127.0.0.1:8080", is_private=True)
    assert "cannot be read" in line
    assert SECRET not in line
