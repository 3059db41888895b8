"""Generations on a node that came over the network: index and metadata first, data later.

    <volumes>/<n>/                     looks like a cache volume: generation.json, blobs, profiles,
                                       and layers/<chain hex>, links to:
    <volumes>/.layers/<digest hex>/    layer directories, named after the digest of layer.json, so
                                       that generations share what is equal in them

A generation appears by rename, once all but its layers' data is here and verified.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from zeropull.delivery.arriving import OWN_FILE, expect_layer, is_arriving
from zeropull.delivery.suppliers import Suppliers
from zeropull.errors import IntegrityError, NotFound
from zeropull.imagecache.layout import (
    GENERATION_FILE,
    GenerationIndex,
    generation_layer,
    read_generation_index,
)
from zeropull.layers.layout import (
    BLOCKS_FILE,
    DATA_FILE,
    LAYER_FILE,
    META_FILE,
    LayerIndex,
    read_layer_index,
)
from zeropull.layers.verify import verify_metadata
from zeropull.linux.files import sync_folder
from zeropull.oci.digests import digest_of, hex_of
from zeropull.startprofiles.profile import StartProfile, decode_profile

LAYERS_FOLDER = ".layers"
_BUILDING = ".building-"
_SMALL_FILES = (LAYER_FILE, META_FILE, BLOCKS_FILE)


class ArrivedGenerations:
    """The generations in one folder of a node. Calls block; one at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._layers = folder / LAYERS_FOLDER
        self._layers.mkdir(mode=0o755, parents=True, exist_ok=True)

    def open(self) -> None:
        """Remove what a kill left half done."""
        for path in self._folder.glob(f"{_BUILDING}*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self._layers.glob(f"{_BUILDING}*"):
            shutil.rmtree(path, ignore_errors=True)
        for own in self._layers.glob(f"*/{OWN_FILE}"):
            if not is_arriving(own.parent):  # whole, but not released yet
                own.replace(own.parent / DATA_FILE)

    def numbers(self) -> list[int]:
        """Of the generations that are here, ascending."""
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())

    def path(self, generation: int) -> Path:
        return self._folder / str(generation)

    def layers(self, generation: int) -> list[Path]:
        """The layer directories of one generation."""
        index = read_generation_index(self.path(generation))
        return [self._layers / hex_of(digest) for digest in dict.fromkeys(index.layers.values())]

    def profiles(self, generation: int) -> list[StartProfile]:
        """The start profiles that came with it; a damaged one is left out."""
        found = []
        for path in sorted((self.path(generation) / "profiles").glob("*.json")):
            with contextlib.suppress(IntegrityError, OSError):
                found.append(decode_profile(path.read_bytes()))
        return found

    def bring(
        self,
        generation: int,
        index_digest: str,
        suppliers: Suppliers,
        watch: Callable[[list[Path]], None],
    ) -> Path:
        """Make the generation appear; returns its folder. Idempotent. Before it appears, `watch`
        gets its layer directories: nobody may read data that has not come.

        Raises:
            NotFound, Unavailable: nobody supplies it.
            IntegrityError: what came is not what the digests name.
            OSError: there is no room.
        """
        target = self.path(generation)
        if target.is_dir():
            read_generation_index(target, digest=index_digest)
            return target
        content = suppliers.files(generation, [GENERATION_FILE])[GENERATION_FILE]
        if digest_of(content) != index_digest:
            raise IntegrityError(f"generation {generation} has another index than {index_digest}")
        building = self._folder / f"{_BUILDING}{generation}-{secrets.token_hex(4)}"
        building.mkdir(mode=0o755)
        try:
            (building / GENERATION_FILE).write_bytes(content)
            index = read_generation_index(building)
            self._bring_files(building, index, suppliers)
            watch([self._layers / hex_of(digest) for digest in index.layers.values()])
            building.rename(target)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        sync_folder(self._folder)
        return target

    def remove(self, generation: int) -> list[Path]:
        """Remove a generation; returns the layer directories that no other one has, which are the
        caller's to let go of and to pass to `remove_layers`."""
        own = self.layers(generation) if self.path(generation).is_dir() else []
        stay = [number for number in self.numbers() if number != generation]
        others = {layer for number in stay for layer in self.layers(number)}
        shutil.rmtree(self.path(generation), ignore_errors=True)
        return [layer for layer in own if layer not in others]

    def remove_layers(self, layers: Iterable[Path]) -> None:
        for layer in layers:
            shutil.rmtree(layer, ignore_errors=True)

    def _bring_files(self, building: Path, index: GenerationIndex, suppliers: Suppliers) -> None:
        """Everything small in one request: a round trip costs more than a few MiB."""
        missing = {
            chain_id: digest
            for chain_id, digest in index.layers.items()
            if not (self._layers / hex_of(digest)).is_dir()
        }
        blobs = {
            f"blobs/{hex_of(digest)}": digest
            for image in index.images
            for digest in (image.manifest_digest, image.config_digest)
        }
        files = suppliers.files(
            index.generation,
            [
                *blobs,
                *(
                    f"layers/{hex_of(chain_id)}/{name}"
                    for chain_id in missing
                    for name in _SMALL_FILES
                ),
            ],
        )
        (building / "blobs").mkdir()
        for name, digest in blobs.items():
            if digest_of(files[name]) != digest:
                raise IntegrityError(f"{name} of generation {index.generation} is damaged")
            (building / name).write_bytes(files[name])
        for chain_id, digest in missing.items():
            folder = f"layers/{hex_of(chain_id)}"
            self._place_layer(digest, {name: files[f"{folder}/{name}"] for name in _SMALL_FILES})
        (building / "layers").mkdir()
        for chain_id, digest in index.layers.items():
            link = generation_layer(building, chain_id)
            link.symlink_to(Path("..", "..", LAYERS_FOLDER, hex_of(digest)))
        self._bring_profiles(building, index, suppliers)

    def _bring_profiles(self, building: Path, index: GenerationIndex, suppliers: Suppliers) -> None:
        """Advice: without it the start takes longer."""
        (building / "profiles").mkdir()
        for image in index.images:
            name = f"profiles/{hex_of(image.manifest_digest)}.json"
            with contextlib.suppress(NotFound):
                (building / name).write_bytes(suppliers.files(index.generation, [name])[name])

    def _place_layer(self, digest: str, files: Mapping[str, bytes]) -> None:
        target = self._layers / hex_of(digest)
        building = self._layers / f"{_BUILDING}{secrets.token_hex(8)}"
        building.mkdir(mode=0o755)
        try:
            for name, content in files.items():
                (building / name).write_bytes(content)
            index: LayerIndex = read_layer_index(building, digest=digest)
            if digest_of(files[BLOCKS_FILE]) != index.data.digest:
                raise IntegrityError(f"{BLOCKS_FILE} of {index.chain_id} is damaged")
            expect_layer(building, index)
            verify_metadata(building)
            with contextlib.suppress(FileExistsError):
                building.rename(target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
