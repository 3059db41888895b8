"""The layers that this node may serve: one symbolic link per chain ID to a layer directory.

The node agent makes and removes links. The plugin follows them, and takes a link away when the
bytes behind it are damaged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from zeropull.errors import IntegrityError, InvalidInput, NotFound
from zeropull.layers.layout import META_FILE, LayerIndex, layer_directory, read_layer_index
from zeropull.layers.verify import verify_metadata
from zeropull.oci.digests import hex_of

DROPPED_PREFIX = ".dropped-"
_VERIFY_THREADS = 4


@dataclass(frozen=True, slots=True)
class CachedLayer:
    """A layer whose metadata has been verified. `path` has no symbolic link in it any more."""

    path: Path
    index: LayerIndex

    @property
    def size_bytes(self) -> int:
        return self.index.meta.size + self.index.data.size

    @property
    def identity(self) -> str:
        """Differs for another layer in the same place. The device's number is not in it: that one
        changes with a reboot."""
        try:
            status = (self.path / META_FILE).stat()
        except OSError as error:
            raise NotFound(f"{self.path} is no layer: {error.strerror}") from error
        return f"{status.st_ino}-{status.st_mtime_ns}"


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

    def verify_chain(
        self, top: str, verified: Collection[tuple[Path, str]] = ()
    ) -> list[CachedLayer]:
        """The layer `top` and all below it, the uppermost first, each held to its digests. A bad
        one is dropped. `verified`: path and identity of layers that were verified before.

        Raises:
            IntegrityError: one of them must not be used.
            NotFound: the catalog lacks one.
        """
        found: dict[str, CachedLayer] = {}
        at = top
        while at and at not in found:
            path = self.locate(at)
            if path is None:
                raise NotFound(f"layer {at} is not in the cache")
            with self._dropping(at, path):
                found[at] = CachedLayer(path, read_layer_index(path))
            at = found[at].index.parent_chain_id

        def verify(chain_id: str, layer: CachedLayer) -> CachedLayer:
            if (layer.path, layer.identity) in verified and layer.index.chain_id == chain_id:
                return layer
            return self._verify_or_drop(layer.path, chain_id)

        with ThreadPoolExecutor(_VERIFY_THREADS) as pool:  # hashing holds no lock of Python's
            return list(pool.map(verify, found.keys(), found.values()))

    def _verify_or_drop(self, path: Path, chain_id: str) -> CachedLayer:
        with self._dropping(chain_id, path):
            return self.verify(path, chain_id)

    @contextmanager
    def _dropping(self, chain_id: str, path: Path) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            self.drop(chain_id, path)
            raise

    def drop(self, chain_id: str, path: Path) -> None:
        """Take the link away, unless it points at another directory by now. The agent, who owns
        the layer itself, finds the link under its dropped name."""
        if self.locate(chain_id) != path:
            return
        link = layer_directory(self.directory, chain_id)
        with suppress(OSError):
            link.rename(self.directory / f"{DROPPED_PREFIX}{hex_of(chain_id)}")
