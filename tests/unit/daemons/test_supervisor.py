"""The gateway's token is kept, and made anew when it is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from zeropull.daemons.supervisor import with_token
from zeropull.resources.settings import ServeSettings, Settings


@pytest.mark.parametrize("damaged", [b"", b"\xff" * 64, b"0" * 63, b"0" * 63 + b"g", b"\n"])
def test_a_damaged_token_is_made_anew(tmp_path: Path, damaged: bytes) -> None:
    settings = Settings(ServeSettings(state_dir=str(tmp_path)))
    path = tmp_path / "gateway.token"
    path.write_bytes(damaged)
    token = with_token(settings).gateway_token
    assert len(token) == 64
    assert path.read_text() == token == with_token(settings).gateway_token
    assert path.stat().st_mode & 0o777 == 0o600
