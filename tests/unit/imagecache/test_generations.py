"""Generations are built whole or not at all, reused within their endpoint, and purged for good."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from tests.fixtures.layers import image_of, member, open_bytes, tar_of
from zeropull.errors import Conflict, DiskFull, IntegrityError, NotFound, Unavailable
from zeropull.imagecache.generations import GenerationStore, PublishedGeneration
from zeropull.imagecache.layout import (
    GenerationIndex,
    generation_blob,
    generation_layer,
    generation_profile,
    read_generation_index,
)
from zeropull.layers.layout import layer_directory
from zeropull.layers.pull import pull_layers
from zeropull.layers.verify import verify_blocks, verify_metadata
from zeropull.oci.digests import digest_of
from zeropull.oci.images import ResolvedImage
from zeropull.startprofiles.profile import PageRun, ProfileFile, StartProfile, encode_profile

LOW = tar_of(member("low", data=b"l" * 300_000))


def pulled(store: Path, *tars: bytes) -> tuple[ResolvedImage, dict[str, Path]]:
    image, blobs = image_of(list(tars))
    missing = list(range(len(tars)))
    sources: list[object] = list(blobs)
    asyncio.run(
        pull_layers(image, missing, sources, store, lambda _: None, open_blob=open_bytes)  # type: ignore[arg-type]
    )
    return image, {chain: layer_directory(store, chain) for chain in image.chain_ids}


def check_whole(generation: PublishedGeneration) -> GenerationIndex:
    """What vouches for what: the index's digest, and in it those of all documents."""
    path = generation.path
    index = read_generation_index(path, digest=generation.index_digest)
    for image in index.images:
        for digest in (image.manifest_digest, image.config_digest):
            assert digest_of(generation_blob(path, digest).read_bytes()) == digest
        assert set(image.chain_ids) <= index.layers.keys()
    for chain_id, digest in index.layers.items():
        assert verify_metadata(generation_layer(path, chain_id), digest=digest).chain_id == chain_id
        verify_blocks(generation_layer(path, chain_id))
    return index


def test_a_generation_is_published_and_verifies(tmp_path: Path) -> None:
    image, sources = pulled(tmp_path / "node", LOW, tar_of(member("top", data=b"t")))
    caches = GenerationStore(tmp_path / "caches")
    generation = caches.build("ep-1", [image], sources, created_at=5.0)
    index = check_whole(generation)
    assert index.images[0].chain_ids == tuple(image.chain_ids)
    assert caches.newest("ep-1") == generation
    assert sorted(path.name for path in generation.path.parent.iterdir()) == ["1"]


def test_unchanged_layers_are_linked_from_the_previous_generation(tmp_path: Path) -> None:
    first, sources = pulled(tmp_path / "node", LOW)
    caches = GenerationStore(tmp_path / "caches")
    old = caches.build("ep", [first], sources, created_at=1)
    assert caches.build("ep", [first], {}, created_at=2) == old
    second, more = pulled(tmp_path / "node2", LOW, tar_of(member("new")))
    top = second.chain_ids[1]
    new = caches.build("ep", [second], {top: more[top]}, created_at=2)
    assert new.number == 2
    inodes = {
        (generation_layer(g.path, first.chain_ids[0]) / "data.erofs").stat().st_ino
        for g in (old, new)
    }
    assert len(inodes) == 1
    assert caches.remove("ep", old.number).files > 0
    assert caches.generations("ep") == [2]
    check_whole(new)


def test_a_start_profile_is_kept_once_and_taken_over_by_the_next_generation(
    tmp_path: Path,
) -> None:
    image, sources = pulled(tmp_path / "node", LOW)
    caches = GenerationStore(tmp_path / "caches")
    digest = image.manifest_digest

    def profile(chain_ids: tuple[str, ...]) -> bytes:
        files, runs = (ProfileFile(0, b"f"),), (PageRun(0, 3, 2, 3),)
        return encode_profile(StartProfile(digest, chain_ids, files, runs, ordered=True))

    mine = profile(tuple(image.chain_ids))
    assert not caches.keep_profile("ep", digest, mine)  # no generation yet
    generation = caches.build("ep", [image], sources, created_at=1)
    assert not caches.has_profile("ep", digest)
    with pytest.raises(IntegrityError):
        caches.keep_profile("ep", digest, profile(("sha256:" + "0" * 64,)))
    with pytest.raises(IntegrityError):
        caches.keep_profile("ep", digest, b"{}")
    assert caches.keep_profile("ep", digest, mine)
    assert not caches.keep_profile("ep", digest, mine)
    assert generation_profile(generation.path, digest).read_bytes() == mine
    check_whole(generation)

    other, more = pulled(tmp_path / "node2", tar_of(member("other")))
    newer = caches.build("ep", [image, other], more, created_at=2)
    assert generation_profile(newer.path, digest).read_bytes() == mine
    assert caches.has_profile("ep", digest)


def test_a_damaged_source_and_a_missing_layer_are_refused(tmp_path: Path) -> None:
    image, sources = pulled(tmp_path / "node", LOW)
    caches = GenerationStore(tmp_path / "caches")
    with pytest.raises(NotFound, match="neither offered"):
        caches.build("ep", [image], {}, created_at=1)
    meta = sources[image.chain_ids[0]] / "meta.erofs"
    content = bytearray(meta.read_bytes())
    content[-1] ^= 1
    meta.write_bytes(content)
    with pytest.raises(IntegrityError):
        caches.build("ep", [image], sources, created_at=1)
    assert caches.newest("ep") is None
    assert caches.sweep().files == 0


def test_a_generation_over_the_budget_is_refused_with_the_arithmetic(tmp_path: Path) -> None:
    image, sources = pulled(tmp_path / "node", LOW)
    caches = GenerationStore(tmp_path / "caches", budget_bytes=100_000)
    with pytest.raises(
        DiskFull, match=r"needs \d+ bytes for 1 new layers; 0 of the budget's 100000"
    ):
        caches.build("ep", [image], sources, created_at=1)


def test_numbers_never_go_back(tmp_path: Path) -> None:
    image, sources = pulled(tmp_path / "node", LOW)
    caches = GenerationStore(tmp_path / "caches")
    assert caches.build("ep", [image], sources, created_at=1, number=7).number == 7
    other, more = pulled(tmp_path / "other", tar_of(member("o")))
    with pytest.raises(Conflict):
        caches.build("ep", [other], more, created_at=1, number=7)


def test_a_purge_that_was_interrupted_is_finished_by_the_sweep(tmp_path: Path) -> None:
    image, sources = pulled(tmp_path / "node", LOW)
    caches = GenerationStore(tmp_path / "caches")
    caches.build("gone", [image], sources, created_at=1)
    kept = caches.build("kept", [image], sources, created_at=1)
    (caches.root / "gone").rename(caches.root / ".purge-gone-00")
    (kept.path.parent / ".building-2-xx").mkdir()
    assert caches.endpoints() == ["kept"]
    assert caches.sweep().files == 7  # index, manifest, config and the layer's four
    assert [path.name for path in caches.root.iterdir()] == ["kept"]
    assert [path.name for path in kept.path.parent.iterdir()] == ["1"]
    removed = caches.purge("kept")
    assert removed.files == 7
    assert caches.purge("kept").files == 0
    assert list(caches.root.iterdir()) == []


def test_a_flipped_byte_anywhere_is_found(tmp_path: Path) -> None:
    image, sources = pulled(tmp_path / "node", LOW)
    generation = GenerationStore(tmp_path / "caches").build("ep", [image], sources, created_at=1)
    layer = generation_layer(generation.path, image.chain_ids[0])
    for name in ("data.erofs", "blocks.blake3", "meta.erofs", "layer.json"):
        path = layer / name
        good = path.read_bytes()
        path.write_bytes(
            good[:100] + bytes([good[100] ^ 1]) + good[101:] if len(good) > 100 else b"x"
        )
        with pytest.raises((IntegrityError, NotFound)):
            check_whole(generation)
        path.write_bytes(good)
    with pytest.raises(IntegrityError):
        read_generation_index(generation.path, digest="sha256:" + "0" * 64)
    verify_blocks(layer, range(1))


class StopAt(threading.Event):
    """Set by itself at the n-th look."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def test_a_build_that_is_stopped_at_whatever_point_leaves_nothing(tmp_path: Path) -> None:
    image, sources = pulled(tmp_path / "node", LOW, tar_of(member("top", data=b"t")))
    caches = GenerationStore(tmp_path / "caches")
    stops = 0
    for looks in range(100):
        try:
            caches.build("ep", [image], sources, created_at=1, stop=StopAt(looks))
        except Unavailable:
            stops += 1
            assert caches.used_bytes() == 0
            assert not list(caches.root.glob("*/generations/*"))
        else:
            break
    assert stops > 4
    assert caches.generations("ep") == [1]
