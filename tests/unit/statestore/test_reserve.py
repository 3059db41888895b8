"""Room that is given up on a full disk, and taken again."""

from __future__ import annotations

from pathlib import Path

import pytest

from zeropull.errors import DiskFull
from zeropull.resources.tags import ResourceTags
from zeropull.statestore import Store
from zeropull.statestore.reserve import DiskReserve


class SizedDisk(DiskReserve):
    """A disk of which so much is free, not counting the reserve's own file."""

    free = 1 << 30

    def free_bytes(self) -> int:
        return self.free


@pytest.fixture
def disk(tmp_path: Path) -> SizedDisk:
    return SizedDisk(tmp_path / "reserve", 1 << 16)


def test_the_reserve_is_taken_given_up_and_taken_again(disk: SizedDisk, tmp_path: Path) -> None:
    disk.check()
    file = tmp_path / "reserve"
    assert file.stat().st_blocks * 512 >= 1 << 16
    assert not disk.is_low
    disk.free = 1 << 20
    disk.check()
    assert disk.is_low
    assert not file.exists()
    disk.free = (1 << 17) - 1
    disk.check()
    assert disk.is_low
    disk.free = 1 << 30
    disk.check()
    assert not disk.is_low
    assert file.exists()


def test_a_reserve_that_was_cut_short_is_taken_anew(tmp_path: Path) -> None:
    (tmp_path / "reserve").write_bytes(b"part")
    disk = SizedDisk(tmp_path / "reserve", 1 << 16)
    assert disk.is_low
    disk.check()
    assert not disk.is_low


def test_on_a_full_disk_nothing_grows_and_all_else_is_written(
    disk: SizedDisk, tmp_path: Path
) -> None:
    with Store.open(tmp_path / "zeropull.db", reserve=disk) as store:
        store.refuse_growth()
        store.put(ResourceTags("a", {}))
        disk.free = 1000
        with pytest.raises(DiskFull, match=r"1,000 bytes are free.*delete endpoints"):
            store.refuse_growth()
        assert "is full" in store.disk_low()
        store.put(ResourceTags("a", {"changed": "yes"}))
        assert store.delete(ResourceTags, "a")
        disk.free = 1 << 30
        store.refuse_growth()
        assert store.disk_low() == ""


def test_free_pages_are_kept_in_the_file_itself(disk: SizedDisk, tmp_path: Path) -> None:
    """Who fills the disk can take what the reserve has given up, but not these."""
    path = tmp_path / "zeropull.db"
    with Store.open(path, reserve=disk) as store:
        size = path.stat().st_blocks
        assert size * 512 >= 4 << 20
        for number in range(1000):
            store.put(ResourceTags(f"arn:{number}", {"k": "v" * 2000}))
        assert path.stat().st_blocks < 2 * size
        store.refuse_growth()
        (count,) = store._file.query("PRAGMA freelist_count")[0]
        assert count * 4096 >= 1 << 20
