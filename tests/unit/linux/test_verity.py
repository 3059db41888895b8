"""fs-verity by the kernel's own word, where the kernel has it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from zeropull.linux.verity import enable_verity, measure_verity

CONTENT = os.urandom(1 << 20)


@pytest.fixture
def verity_disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """An ext4 file system that was made for fs-verity, and the file that it lies in."""
    mkfs = shutil.which("mkfs.ext4") or shutil.which("/sbin/mkfs.ext4")
    if os.geteuid() != 0 or mkfs is None:
        pytest.skip("needs root and mkfs.ext4")
    image, target = tmp_path / "disk", tmp_path / "mounted"
    target.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run([mkfs, "-q", "-O", "verity", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(target)], check=False).returncode:
        pytest.skip("this kernel mounts no ext4 with the feature verity")
    try:
        yield target, image
    finally:
        subprocess.run(["umount", str(target)], check=True)


def test_a_file_system_without_it_says_so(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    shared_memory = Path("/dev/shm")
    if shared_memory.is_dir():  # tmpfs has never had it
        path = Path(shutil.copy(path, shared_memory / f"zp-verity-{os.getpid()}"))
    try:
        assert enable_verity(path) is False
        assert measure_verity(path) is None
        path.write_bytes(b"still writable")
    finally:
        path.unlink()


def test_the_kernel_holds_a_file_to_its_digest(verity_disk: tuple[Path, Path]) -> None:
    mounted, disk = verity_disk
    path = mounted / "file"
    path.write_bytes(CONTENT)
    if not enable_verity(path):
        pytest.skip("this kernel has no fs-verity (CONFIG_FS_VERITY)")
    assert enable_verity(path), "idempotent"
    assert len(measure_verity(path) or b"") == 32
    assert path.read_bytes() == CONTENT
    with pytest.raises(PermissionError):
        path.write_bytes(b"changed")
    # A bit changes on the disk, below the file system.
    os.sync()
    with disk.open("r+b") as file:
        at = file.read().index(CONTENT[8192:8256])
        file.seek(at)
        file.write(bytes([CONTENT[8192] ^ 1]))
        os.fsync(file.fileno())
    Path("/proc/sys/vm/drop_caches").write_text("1")
    with pytest.raises(OSError, match="Input/output error"):
        path.read_bytes()
