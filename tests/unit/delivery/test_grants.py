"""Grants: found by their token only, and gone the moment they are taken away."""

from __future__ import annotations

from pathlib import Path

from zeropull.delivery.grants import Grant, Grants

ONE, TWO = Grant("endpoint-a", "i-1"), Grant("endpoint-b", "i-2")


def test_a_token_is_good_for_its_own_grant_and_the_folder_gives_no_token_away(
    tmp_path: Path,
) -> None:
    grants = Grants(tmp_path / "grants")
    tokens = {grants.make(ONE): ONE, grants.make(TWO): TWO}
    assert {token: grants.find(token) for token in tokens} == tokens
    stored = [path.name + path.read_text() for path in (tmp_path / "grants").iterdir()]
    assert not any(token in text for token in tokens for text in stored)


def test_a_wrong_token_is_good_for_nothing(tmp_path: Path) -> None:
    grants = Grants(tmp_path / "grants")
    token = grants.make(ONE)
    [file] = (tmp_path / "grants").iterdir()
    for wrong in ("", token[:-1], token[:-1] + "!", "x" * 43, f"../grants/{file.name}", file.name):
        assert grants.find(wrong) is None


def test_a_revoked_grant_is_worthless_at_once_for_every_reader(tmp_path: Path) -> None:
    writer, reader = Grants(tmp_path / "grants"), Grants(tmp_path / "grants")
    gone, again, stays = writer.make(ONE), writer.make(ONE), writer.make(TWO)
    assert writer.revoke("i-1") == 2
    assert (reader.find(gone), reader.find(again), reader.find(stays)) == (None, None, TWO)
    assert writer.revoke("i-1") == 0


def test_grants_of_unknown_instances_and_damaged_files_are_cleared_away(tmp_path: Path) -> None:
    grants = Grants(tmp_path / "grants")
    gone, stays = grants.make(ONE), grants.make(TWO)
    (tmp_path / "grants" / "damaged").write_bytes(b"{")
    assert grants.revoke("i-9") == 0, "a damaged file belongs to no instance"
    assert grants.keep_only(frozenset({"i-2"})) == 2
    assert (grants.find(gone), grants.find(stays)) == (None, TWO)


def test_without_a_folder_there_is_no_grant(tmp_path: Path) -> None:
    grants = Grants(tmp_path / "nowhere")
    assert grants.find("x" * 43) is None
    assert grants.revoke("i-1") == 0
