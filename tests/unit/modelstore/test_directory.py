from __future__ import annotations

import os
from pathlib import Path

import pytest

from zeropull.errors import AccessDenied, ArtifactError, NotFound
from zeropull.modelstore.directory import DirectoryObjects


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    folder = tmp_path / "bucket"
    (folder / "m/sub").mkdir(parents=True)
    (folder / "m/weights").write_bytes(b"w" * 100)
    (folder / "m/sub/config").write_bytes(b"{}")
    (tmp_path / "secret").write_text("the server's own credentials")
    (tmp_path / "others").mkdir()
    (tmp_path / "others/secret").write_text("another's")
    return folder


async def content(objects: DirectoryObjects, key: str) -> bytes:
    facts = await objects.head(key)
    return b"".join([chunk async for chunk in objects.stream(facts, 0, facts.size)])


@pytest.mark.parametrize(
    "target", ["../secret", "/etc/hostname", "m/../../secret", "/proc/self/environ"]
)
async def test_a_link_that_leads_out_is_refused(bucket: Path, target: str) -> None:
    (bucket / "link").symlink_to(target)
    objects = DirectoryObjects(bucket)
    with pytest.raises(AccessDenied, match="leads out of"):
        await objects.head("link")
    (bucket / "link").rename(bucket / "m/link")
    with pytest.raises((AccessDenied, NotFound)):
        await objects.list_under("m/")


async def test_a_folder_that_leads_out_is_refused(bucket: Path) -> None:
    (bucket / "away").symlink_to("../others")
    objects = DirectoryObjects(bucket)
    with pytest.raises(AccessDenied, match="leads out of"):
        await objects.head("away/secret")
    for prefix in ("away/", ""):
        with pytest.raises(AccessDenied, match="leads out of"):
            await objects.list_under(prefix)


async def test_links_within_the_bucket_are_followed(bucket: Path) -> None:
    (bucket / "latest").symlink_to("m")
    (bucket / "m/best").symlink_to("../m/weights")
    objects = DirectoryObjects(bucket)
    assert await content(objects, "latest/best") == b"w" * 100
    listed = [facts.key for facts in await objects.list_under("latest/")]
    assert listed == ["latest/best", "latest/sub/config", "latest/weights"]


async def test_a_file_that_is_replaced_by_a_link_after_its_facts_is_not_read(bucket: Path) -> None:
    objects = DirectoryObjects(bucket)
    facts = await objects.head("m/weights")
    (bucket / "m/weights").unlink()
    (bucket / "m/weights").symlink_to("../../secret")
    with pytest.raises(AccessDenied):
        async for _ in objects.stream(facts, 0, facts.size):
            pass


async def test_links_in_a_circle_end(bucket: Path) -> None:
    (bucket / "a").symlink_to("b")
    (bucket / "b").symlink_to("a")
    (bucket / "m/again").symlink_to("../m")
    objects = DirectoryObjects(bucket)
    with pytest.raises(AccessDenied, match="in a circle"):
        await objects.head("a")
    with pytest.raises((ArtifactError, AccessDenied)):
        await objects.list_under("m/")


async def test_a_fifo_is_not_waited_for(bucket: Path) -> None:
    os.mkfifo(bucket / "m/pipe")
    with pytest.raises(NotFound, match="not a file"):
        await DirectoryObjects(bucket).head("m/pipe")


@pytest.mark.parametrize(
    "key", ["", "/m/weights", "m//weights", "../secret", "m/./weights", "a\0b"]
)
async def test_keys_that_are_no_paths_are_refused(bucket: Path, key: str) -> None:
    with pytest.raises(ArtifactError, match="not a key below"):
        await DirectoryObjects(bucket).head(key)


async def test_what_is_not_there_is_not_found(bucket: Path) -> None:
    objects = DirectoryObjects(bucket)
    assert await objects.list_under("absent/") == []
    for key in ("absent", "m", "m/weights/x"):
        with pytest.raises(NotFound):
            await objects.head(key)
