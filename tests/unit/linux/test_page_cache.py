from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from zeropull.linux.page_cache import resident_pages


def test_what_was_just_written_is_in_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * mmap.PAGESIZE + 1))
    assert resident_pages(path) == [(0, 4)]


def test_an_empty_file_has_no_pages(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert resident_pages(tmp_path / "empty") == []


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        resident_pages(tmp_path / "link")
