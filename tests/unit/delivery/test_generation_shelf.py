"""The source's shelf: an endpoint's own generations, and no way out of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.arriving import MadeUpLayer, made_up_layer
from zeropull.delivery.generation_shelf import GenerationShelf
from zeropull.delivery.grants import Grant
from zeropull.errors import NotFound

GRANT = Grant("endpoint-a", "i-1")
HEX = "a" * 64


@pytest.fixture
def made(tmp_path: Path) -> MadeUpLayer:
    found = made_up_layer(3)
    found.write(tmp_path / "endpoint-a/generations/1/layers" / found.index.chain_id[7:])
    return found


@pytest.mark.parametrize(
    "name",
    ["generation.json", f"blobs/{HEX}", f"profiles/{HEX}.json", f"layers/{HEX}/meta.erofs"],
)
def test_files_of_a_generation_have_a_path(tmp_path: Path, name: str) -> None:
    found = GenerationShelf(tmp_path).file(GRANT, 1, name)
    assert found == tmp_path / "endpoint-a/generations/1" / name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../2/generation.json",
        "/etc/passwd",
        f"blobs/../{HEX}",
        f"layers/{HEX}/data.erofs",  # only by blocks
        "generation.json\n",
        f"blobs/{HEX}/",
    ],
)
def test_any_other_name_is_not_there(tmp_path: Path, name: str) -> None:
    assert GenerationShelf(tmp_path).file(GRANT, 1, name) is None


@pytest.mark.parametrize("uid", ["", ".", "..", "a/b", "x" * 65])
def test_a_grant_for_a_strange_endpoint_leads_nowhere(tmp_path: Path, uid: str) -> None:
    with pytest.raises(NotFound):
        GenerationShelf(tmp_path).file(Grant(uid, "i-1"), 1, "generation.json")


def test_blocks_are_counted_up_to_the_end_of_the_layer(made: MadeUpLayer, tmp_path: Path) -> None:
    blocks = GenerationShelf(tmp_path).layer(GRANT, 1, made.index.chain_id)
    assert [blocks.available(first, 2) for first in range(5)] == [2, 2, 1, 0, 0]
    assert blocks.size(1, 5) == len(made.contents[1]) + len(made.contents[2])
    assert blocks.size(9, 1) == 0
    assert [blocks.read(number) for number in range(3)] == list(made.contents)


@pytest.mark.parametrize(
    ("grant", "generation", "chain_id"),
    [
        (Grant("endpoint-b", "i-1"), 1, ""),
        (GRANT, 2, ""),
        (GRANT, 1, f"sha256:{HEX}"),
        (GRANT, 1, "sha256:../1"),
    ],
)
def test_layers_of_others_are_not_there(
    made: MadeUpLayer, tmp_path: Path, grant: Grant, generation: int, chain_id: str
) -> None:
    with pytest.raises(NotFound):
        GenerationShelf(tmp_path).layer(grant, generation, chain_id or made.index.chain_id)
