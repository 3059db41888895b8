"""The receiver of one node: attaches generations that are not on its disk, and brings their data.

Index and metadata come first, then readers may read: what they need comes on demand, the start
profile as one stream beside it, and the rest once the node says that its link is free. A layer that
is whole is an ordinary layer: nothing of the mechanism is left in its way.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from zeropull.backoff import Backoff
from zeropull.delivery.arriving import ArrivingLayer, is_arriving
from zeropull.delivery.filling import Cause, Filler, Wanted
from zeropull.delivery.generations import ArrivedGenerations
from zeropull.delivery.suppliers import SupplierAddress, Suppliers
from zeropull.errors import ZeropullError
from zeropull.layers.layout import BLOCK_BYTES
from zeropull.startprofiles.profile import PAGE_BYTES, StartProfile
from zeropull.telemetry import get_logger

_RETRY = Backoff(first_s=0.5, limit_s=30.0)
_REST_BLOCKS = 256  # at once: 64 MiB, then a look at what has changed

log = get_logger(__name__)


class Rung(Protocol):
    """How readers of an arriving layer are made to wait."""

    name: str

    def watch(self, layer: ArrivingLayer) -> None:
        """Reads of its data wait from now on. Called before anything is mounted on it."""

    def release(self, layer: ArrivingLayer) -> None:
        """The layer is whole, or goes."""


@dataclass(frozen=True, slots=True)
class GenerationState:
    """Of one generation: layers and blocks, and how many of them are here."""

    generation: int
    path: str
    layers: int
    whole_layers: int
    blocks: int
    blocks_here: int
    profile_done: bool
    failure: str = ""


@dataclass(frozen=True, slots=True)
class ReceiverState:
    """`bytes`: by cause. `fault_wait_s`: of all readers together."""

    rung: str
    generations: tuple[GenerationState, ...]
    bytes: dict[str, int]
    faults: int
    failed_faults: int
    fault_wait_s: float
    suppliers: dict[str, int]  # bytes by supplier
    reports: tuple[str, ...] = ()  # what suppliers did wrong
    last_failure: str = ""
    epoch: str = ""  # another one after each start
    broken: tuple[str, ...] = ()  # chain IDs: what was mounted on them before is not to be used


@dataclass
class _Generation:
    number: int
    path: Path
    layers: list[ArrivingLayer]
    profiles: list[StartProfile]
    profile_done: bool = False
    failure: str = ""
    gone: threading.Event = field(default_factory=threading.Event)


class Receiver:
    """All generations of one node. Methods may be called from any thread; `close` once."""

    def __init__(self, folder: Path, source: SupplierAddress) -> None:
        self.suppliers = Suppliers(source)
        self.filler = Filler(self.suppliers, self._generation_of)
        self._arrived = ArrivedGenerations(folder)
        self._rung: Rung | None = None
        self._generations: dict[int, _Generation] = {}
        self._layers: dict[Path, ArrivingLayer] = {}
        self._lock = threading.RLock()
        self._broken: tuple[str, ...] = ()
        self._attaching: int | None = None
        self._epoch = secrets.token_hex(8)
        self._rest = threading.Event()
        self._closed = threading.Event()

    def open(self, rung: Rung, *, is_held: bool = True) -> None:
        """Go on with what is here from before, each layer watched again. `is_held`: nobody was let
        go while no receiver ran. Else what is mounted on an arriving layer may have shown zeros, or
        is dead, and is not to be used any more."""
        self._rung = rung
        self._arrived.open()
        for number in self._arrived.numbers():
            self._adopt(number, self._arrived.path(number))
        if not is_held:
            self._broken = tuple(layer.index.chain_id for layer in self._layers.values())

    def start(self) -> None:
        """Readers are served by now: bring the rest of what `open` found."""
        with self._lock:
            for generation in self._generations.values():
                self._work_on(generation)

    def close(self) -> None:
        self._closed.set()
        self._rest.set()
        self.filler.close()
        self.suppliers.close()

    def attach(self, generation: int, index_digest: str) -> Path:
        """Bring index and metadata; returns the folder, which looks like a cache volume. Data
        follows. Idempotent.

        Raises:
            NotFound, Unavailable: nobody supplies it.
            IntegrityError: what came is not what the digests name.
            OSError: there is no room.
        """
        with self._lock:
            self._attaching = generation
            try:
                path = self._arrived.bring(
                    generation, index_digest, self.suppliers, self._watch_all
                )
            finally:
                self._attaching = None
            if generation not in self._generations:
                self._rest.clear()  # a launch begins: its model goes first, until the node says so
                self._work_on(self._adopt(generation, path))
        return path

    def detach(self, generation: int) -> None:
        """Nothing of the node uses it any more: remove what no other generation has."""
        with self._lock:
            known = self._generations.pop(generation, None)
            if known is not None:
                known.gone.set()
            gone = self._arrived.remove(generation)
            for path in gone:
                layer = self._layers.pop(path, None)
                if layer is not None:
                    self._release(layer)
            self._arrived.remove_layers(gone)

    def bring_rest(self) -> None:
        """The node's link is free: bring what no reader has asked for."""
        self._rest.set()

    def state(self) -> ReceiverState:
        with self._lock:
            generations = tuple(map(_state_of, self._generations.values()))
        everybody = self.suppliers.everybody()
        return ReceiverState(
            rung=self._rung.name if self._rung is not None else "",
            generations=generations,
            bytes={cause.value: self.filler.bytes[cause] for cause in Cause},
            faults=self.filler.faults,
            failed_faults=self.filler.failed_faults,
            fault_wait_s=self.filler.wait_s,
            suppliers={each.address.name: each.bytes for each in everybody},
            reports=tuple(each.last_failure for each in everybody if each.last_failure),
            last_failure=self.filler.last_failure,
            epoch=self._epoch,
            broken=self._broken,
        )

    def _adopt(self, number: int, path: Path) -> _Generation:
        layers = list(self._watch(self._arrived.layers(number)))
        generation = _Generation(number, path, layers, self._arrived.profiles(number))
        self._generations[number] = generation
        return generation

    def _watch_all(self, folders: Iterable[Path]) -> None:
        list(self._watch(folders))

    def _watch(self, folders: Iterable[Path]) -> Iterator[ArrivingLayer]:
        """The layers of these folders that are not whole, each of them watched by now."""
        assert self._rung is not None
        for folder in folders:
            layer = self._layers.get(folder)
            if layer is None and is_arriving(folder):
                layer = ArrivingLayer(folder)
                self._rung.watch(layer)
                if not is_arriving(folder):
                    layer.close()
                    continue
                self._layers[folder] = layer
            if layer is not None:
                yield layer

    def _work_on(self, generation: _Generation) -> None:
        threading.Thread(
            target=self._bring, args=(generation,), name=f"bring-{generation.number}", daemon=True
        ).start()

    def _bring(self, generation: _Generation) -> None:
        """The profile, then, once the link is free, the rest, then whole layers are released."""
        failures = 0
        while not self._ended(generation):
            try:
                self.filler.stream(_profile_blocks(generation), Cause.PROFILE)
                generation.profile_done = True
                self._rest.wait()
                if self._bring_some(generation):
                    return
                failures, generation.failure = 0, ""
            except (ZeropullError, OSError) as error:
                failures += 1
                generation.failure = str(error)
                pause_s = _RETRY.after(failures)
                log.warning(
                    "generation does not arrive",
                    generation=generation.number,
                    reason=str(error),
                    retry_in_s=pause_s,
                )
                generation.gone.wait(pause_s)

    def _bring_some(self, generation: _Generation) -> bool:
        """One piece of the rest; True once every layer is whole."""
        for layer in generation.layers:
            if not layer.missing:
                self._make_whole(layer)
                continue
            missing = [block for block in range(layer.blocks) if not layer.has(block)]
            wanted = [Wanted(layer, block) for block in missing[:_REST_BLOCKS]]
            self.filler.stream(wanted, Cause.REST)
            return False
        return True

    def _make_whole(self, layer: ArrivingLayer) -> None:
        with self._lock:
            if self._layers.pop(layer.path, None) is None:
                return
        layer.finish()
        self._release(layer)
        log.info("layer is whole", chain_id=layer.index.chain_id)

    def _release(self, layer: ArrivingLayer) -> None:
        assert self._rung is not None
        try:
            self._rung.release(layer)
        except OSError as error:
            log.warning("layer not released", layer=str(layer.path), reason=str(error))

    def _ended(self, generation: _Generation) -> bool:
        return self._closed.is_set() or generation.gone.is_set()

    def _generation_of(self, layer: ArrivingLayer) -> int | None:
        with self._lock:
            for number in sorted(self._generations, reverse=True):
                if layer in self._generations[number].layers:
                    return number
        return self._attaching


def _state_of(generation: _Generation) -> GenerationState:
    layers = generation.layers
    return GenerationState(
        generation=generation.number,
        path=str(generation.path),
        layers=len(layers),
        whole_layers=sum(not is_arriving(layer.path) for layer in layers),
        blocks=sum(layer.blocks for layer in layers),
        blocks_here=sum(layer.blocks - layer.missing for layer in layers),
        profile_done=generation.profile_done,
        failure=generation.failure,
    )


def _profile_blocks(generation: _Generation) -> list[Wanted]:
    by_chain = {layer.index.chain_id: layer for layer in generation.layers}
    found: dict[tuple[str, int], Wanted] = {}
    for profile in generation.profiles:
        for chain_id, block in profile_order(profile):
            layer = by_chain.get(chain_id)
            if layer is not None and block < layer.blocks:
                found.setdefault((chain_id, block), Wanted(layer, block))
    return list(found.values())


def profile_order(profile: StartProfile) -> Iterable[tuple[str, int]]:
    """Chain ID and block, in the order of first use; blocks may come more than once."""
    per_block = BLOCK_BYTES // PAGE_BYTES
    for run in profile.runs:
        chain_id = profile.chain_ids[profile.files[run.file].layer]
        last = (run.start + run.pages - 1) // per_block
        for block in range(run.start // per_block, last + 1):
            yield chain_id, block
