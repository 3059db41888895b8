"""A changed byte costs the document in which it is, and no other."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from zeropull.errors import IntegrityError
from zeropull.resources.accounts import Account
from zeropull.resources.tags import ResourceTags
from zeropull.statestore import Store
from zeropull.statestore.damage import WRONG_DIGEST

NAMES = ("arn:a", "arn:b", "arn:c")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A state with three documents of one kind and one of another."""
    made = tmp_path / "zeropull.db"
    with Store.open(made) as store:
        for name in NAMES:
            store.put(ResourceTags(name, {"team": "x" * 20}))
        store.put(Account("000000000001", "one", 1.0))
    return made


def change(path: Path, sql: str, *values: object) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(sql, values)
    connection.close()


def flip(path: Path, before: bytes, after: bytes) -> None:
    """Change bytes in the file itself, as a disk would."""
    data = path.read_bytes()
    assert data.count(before) >= 1
    path.write_bytes(data.replace(before, after))


def read(store: Store) -> list[str]:
    return [stored.document.arn for stored in store.select(ResourceTags)]


@pytest.mark.parametrize(
    "after",
    [b'"arn:B"', b'"arn:\x00"', b'"arn:\xff"', b'"arn:b}'],
    ids=["another letter", "a null byte", "no UTF-8", "no JSON"],
)
def test_a_changed_byte_of_a_document_costs_this_document_only(path: Path, after: bytes) -> None:
    flip(path, b'"arn:b"', after)
    with Store.open(path) as store:
        assert read(store) == ["arn:a", "arn:c"]
        assert store.get(ResourceTags, "arn:b") is None
        assert store.require(Account, "000000000001").document.name == "one"
        (damaged,) = store.damaged()
        assert (damaged.kind, damaged.key, damaged.reason) == (
            ResourceTags.kind, "arn:b", WRONG_DIGEST,
        )  # fmt: skip
        assert damaged.found_s > 1_700_000_000


def test_what_was_set_aside_can_be_written_again_and_stays_named(path: Path) -> None:
    flip(path, b'"arn:b"', b'"arn:B"')
    with Store.open(path) as store:
        assert store.put(ResourceTags("arn:b", {}), expected_version=0) == 1
    with Store.open(path) as store:
        assert read(store) == list(NAMES)
        assert [each.key for each in store.damaged()] == ["arn:b"]


def test_a_kind_that_is_damaged_is_noticed(path: Path) -> None:
    change(path, "UPDATE documents SET kind = 'resource_tagz' WHERE key = 'arn:a'")
    with Store.open(path) as store:
        assert read(store) == ["arn:b", "arn:c"]
        assert [each.kind for each in store.damaged()] == ["resource_tagz"]


def test_damage_while_the_store_is_open_is_noticed_when_it_is_read(path: Path) -> None:
    with Store.open(path) as store:
        revision = store.revision_of(ResourceTags.kind)
        change(path, "UPDATE documents SET body = CAST('{' AS BLOB) WHERE key = 'arn:c'")
        assert read(store) == ["arn:a", "arn:b"]
        assert [each.key for each in store.damaged()] == ["arn:c"]
        assert store.revision_of(ResourceTags.kind) > revision  # what is kept in memory is told


def test_a_document_of_another_shape_is_set_aside_with_the_reason(path: Path) -> None:
    """Written whole, by a release that took another type for a field, say."""
    from zeropull.statestore.digests import digest_of

    body = b'{"arn": 7}'
    digest = digest_of(ResourceTags.kind, b"arn:a", body)
    change(path, "UPDATE documents SET body = ?, digest = ? WHERE key = 'arn:a'", body, digest)
    with Store.open(path) as store:
        assert read(store) == ["arn:b", "arn:c"]
        assert "arn" in store.damaged()[0].reason


def test_an_index_that_is_damaged_is_made_anew(path: Path) -> None:
    change(path, "PRAGMA journal_mode = DELETE")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA writable_schema = ON")
    # The index's root page becomes an empty leaf: no row is found through it any more.
    page = connection.execute(
        "SELECT rootpage FROM sqlite_master WHERE name = 'documents_key'"
    ).fetchone()[0]
    size = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    data = bytearray(path.read_bytes())
    empty = b"\x0a\x00\x00\x00\x00" + size.to_bytes(2, "big") + b"\x00"
    data[(page - 1) * size : (page - 1) * size + len(empty)] = empty
    path.write_bytes(data)
    with Store.open(path) as store:
        assert read(store) == list(NAMES)
        assert store.damaged() == []


def test_a_file_whose_structure_is_damaged_is_refused_with_the_remedy(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"zeropull restore FILE.*--fresh-state"):
        Store.open(path)
