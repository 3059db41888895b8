"""The layers that this node may serve: one symbolic link per chain ID to a layer directory.

The node agent makes and removes links; the plugin follows them, and takes one away when the bytes
behind it are not what they should be.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from zeropull.errors import IntegrityError, InvalidInput
from zeropull.imagecache.layout import (
    DATA_FILE,
    META_FILE,
    LayerIndex,
    layer_directory,
    read_layer_index,
)
from zeropull.oci.digests import hex_of

DROPPED_PREFIX = ".dropped-"


@dataclass(frozen=True, slots=True)
class CachedLayer:
    """A layer whose metadata has been verified. `path` has no symbolic link in it any more."""

    path: Path
    index: LayerIndex

    @property
    def size_bytes(self) -> int:
        return self.index.meta.size + self.index.data.size


class Catalog:
    """Links in one directory. `verify_metadata` raises IntegrityError for a bad metadata image."""

    def __init__(self, directory: Path, verify_metadata: Callable[[Path], object]) -> None:
        self.directory = directory
        self._verify_metadata = verify_metadata

    def locate(self, chain_id: str) -> Path | None:
        """The layer directory that the catalog names; None when there is none."""
        try:
            return layer_directory(self.directory, chain_id).resolve(strict=True)
        except (OSError, InvalidInput, RuntimeError):  # RuntimeError: a loop of links, before 3.13
            return None

    def verify(self, path: Path, chain_id: str) -> CachedLayer:
        """Read the layer's index and hold the metadata to its digest and the data to its size.

        Raises:
            IntegrityError: the layer must not be used.
            NotFound: it is gone.
        """
        index = read_layer_index(path)
        if index.chain_id != chain_id:
            raise IntegrityError(f"{path} holds the layer {index.chain_id}, not {chain_id}")
        # A short data file mounts, and then reads fail with EIO.
        try:
            sizes = {META_FILE: index.meta.size, DATA_FILE: index.data.size}
            found = {name: (path / name).stat().st_size for name in sizes}
        except OSError as error:
            raise IntegrityError(f"{path} is not complete: {error}") from error
        for name, size in sizes.items():
            if found[name] != size:
                raise IntegrityError(f"{path / name} has {found[name]} bytes, expected {size}")
        self._verify_metadata(path)
        return CachedLayer(path, index)

    def drop(self, chain_id: str, path: Path) -> None:
        """Take the link away, unless it points at another directory by now. The agent, who owns
        the layer itself, finds the link under its dropped name."""
        if self.locate(chain_id) != path:
            return
        link = layer_directory(self.directory, chain_id)
        with suppress(OSError):
            link.rename(self.directory / f"{DROPPED_PREFIX}{hex_of(chain_id)}")
