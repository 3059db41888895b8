"""The layers that this node may serve: one symbolic link per chain ID to a layer directory.

The node agent makes and removes links; the plugin follows them, and takes one away when the bytes
behind it are not what they should be.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from zeropull.errors import IntegrityError, InvalidInput
from zeropull.imagecache.layout import LayerIndex, layer_directory
from zeropull.imagecache.verify import verify_metadata
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
    """Links in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def locate(self, chain_id: str) -> Path | None:
        """The layer directory that the catalog names; None when there is none."""
        try:
            return layer_directory(self.directory, chain_id).resolve(strict=True)
        except (OSError, InvalidInput, RuntimeError):  # RuntimeError: a loop of links, before 3.13
            return None

    def verify(self, path: Path, chain_id: str) -> CachedLayer:
        """Hold the metadata to its digest and the data to its size.

        Raises:
            IntegrityError: the layer must not be used.
            NotFound: it is gone.
        """
        index = verify_metadata(path)
        if index.chain_id != chain_id:
            raise IntegrityError(f"{path} holds the layer {index.chain_id}, not {chain_id}")
        return CachedLayer(path, index)

    def drop(self, chain_id: str, path: Path) -> None:
        """Take the link away, unless it points at another directory by now. The agent, who owns
        the layer itself, finds the link under its dropped name."""
        if self.locate(chain_id) != path:
            return
        link = layer_directory(self.directory, chain_id)
        with suppress(OSError):
            link.rename(self.directory / f"{DROPPED_PREFIX}{hex_of(chain_id)}")
