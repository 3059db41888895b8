"""What the supervisor tells its children is read whole, or refused with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from zeropull.daemons.settings_file import read_settings, write_settings
from zeropull.errors import ConfigurationError
from zeropull.resources.settings import ServeSettings, Settings


def test_settings_are_read_as_they_were_written(tmp_path: Path) -> None:
    settings = Settings(ServeSettings(run_dir=str(tmp_path)), gateway_token="t")
    write_settings(settings)
    assert read_settings(settings.settings_file) == settings
    assert settings.settings_file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"{", b'{"serve": 7}', b'{"docker_config": "\xff"}'])
def test_damaged_settings_name_the_file_and_the_remedy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="start `zeropull serve` again") as refused:
        read_settings(path)
    assert str(path) in refused.value.reason
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_settings(tmp_path / "nothing")
