"""R/settings.json: the settings that the supervisor gives to the processes that it starts."""

from __future__ import annotations

from pathlib import Path

import msgspec

from zeropull.errors import ConfigurationError
from zeropull.linux.files import replace_file
from zeropull.resources.settings import Settings


def write_settings(settings: Settings) -> None:
    """It has secrets: readable by its owner only."""
    settings.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(settings.settings_file, msgspec.json.encode(settings), is_durable=False)


def read_settings(path: Path) -> Settings:
    """Raises:
    ConfigurationError: the file cannot be read, or not as settings.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Settings)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"the settings in {path} cannot be read ({error}): start `zeropull serve` again, which "
            "writes them anew"
        ) from error
