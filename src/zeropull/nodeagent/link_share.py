"""How an image and a model that arrive at the same time share the node's link.

The image goes first: converting it costs processor time that is to begin at once, and what follows
its last byte (metadata, mounts) then runs beside the rest of the model. A launch needs both, so
what counts is a link that is never idle. Shares are numbers of connections, which is how TCP
divides a link: a rate would need the link's capacity, which nobody knows, and would leave some of
it unused.

Where not the link but the processor is slower, a model that runs ahead takes from the image what it
does not need yet: it is held to the image's pace, a little behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

MODEL_CONNECTIONS = 8  # of one artifact, when no image arrives
BEHIND = 0.05  # what then is left of the model comes beside the end of the image's conversion
HOLD_S = 5.0  # an image that hardly moves does not keep a model waiting for longer
CONTAINERD_CONNECTIONS = 3  # containerd's ordinary pull: one for each layer, three at a time


@dataclass(frozen=True, slots=True)
class ImageUse:
    """The image's connections: `open` ones, and those of them that wait for bytes. The others have
    filled their buffers: the processor is slower than the link, and they read nothing for now."""

    open: int = 0
    reading: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes that are here, and that there are. `total` 0: nothing arrives, or nobody knows."""

    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class SharedBytes:
    """What has arrived while the other one was on its way, too."""

    image: int = 0
    model: int = 0

    def since(self, before: SharedBytes) -> SharedBytes:
        return SharedBytes(self.image - before.image, self.model - before.model)

    @property
    def model_share(self) -> float | None:
        """None: they were never on their way at the same time, or nobody has counted the image's
        bytes, as when containerd pulls it."""
        return self.model / (self.image + self.model) if self.image else None


def model_connections(share: float, image: ImageUse, maximum: int = MODEL_CONNECTIONS) -> int:
    """How many connections models may use: `share` of all beside a busy image, at least one; those
    that the image leaves idle as well; all of them when no image arrives."""
    if image.open == 0:
        return maximum
    owed = max(1, round(image.open * share / (1.0 - share)))
    return min(maximum, owed + image.open - image.reading)


def is_ahead(model: Progress, image: Progress) -> bool:
    """The model is less than `BEHIND` behind the image, each measured by its own bytes."""
    if not model.total or not image.total:
        return False
    return model.done / model.total > image.done / image.total - BEHIND


class LinkShare:
    """One for a node. Images tell what they use, from their own threads; models ask for turns."""

    def __init__(self, share: float, *, hold_s: float = HOLD_S) -> None:
        self._hold_s = hold_s
        self.share = share
        self._lock = threading.Lock()
        self._image = ImageUse()
        self._image_progress = Progress()
        self._model_progress = Progress()
        self._shared = SharedBytes()
        self._models = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def shared(self) -> SharedBytes:
        return self._shared

    def image_uses(self, opened: int, reading: int) -> None:
        """Changes of the image's connections; from any thread."""
        with self._lock:
            self._image = ImageUse(self._image.open + opened, self._image.reading + reading)
        self._look_again()

    @contextlib.contextmanager
    def image_arrives(self, size: int) -> Iterator[None]:
        """While so many bytes of an image are pulled."""
        with self._lock:
            known = self._image_progress
            self._image_progress = Progress(known.done, known.total + size)
        try:
            yield
        finally:
            with self._lock:
                left = self._image_progress.total - size
                done = min(self._image_progress.done, left)
                self._image_progress = Progress(done, left)
            self._look_again()

    def image_bytes(self, count: int) -> None:
        """From any thread."""
        with self._lock:
            known = self._image_progress
            self._image_progress = Progress(known.done + count, known.total)
            if self._models or self._waiting:
                self._shared = SharedBytes(self._shared.image + count, self._shared.model)

    @contextlib.contextmanager
    def containerd_pulls(self) -> Iterator[None]:
        """While containerd's ordinary pull runs, whose connections nobody sees."""
        self.image_uses(CONTAINERD_CONNECTIONS, CONTAINERD_CONNECTIONS)
        try:
            yield
        finally:
            self.image_uses(-CONTAINERD_CONNECTIONS, -CONTAINERD_CONNECTIONS)

    @contextlib.contextmanager
    def model_arrives(self) -> Iterator[Callable[[int], None]]:
        """While a model is downloaded; to be told its size."""
        expected = 0

        def expect(size: int) -> None:
            nonlocal expected
            expected += size
            known = self._model_progress
            self._model_progress = Progress(known.done, known.total + size)

        try:
            yield expect
        finally:
            left = self._model_progress.total - expected
            self._model_progress = Progress(min(self._model_progress.done, left), left)

    def model_bytes(self, count: int) -> None:
        with self._lock:
            known = self._model_progress
            self._model_progress = Progress(known.done + count, known.total)
            if self._image.open:
                self._shared = SharedBytes(self._shared.image, self._shared.model + count)

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Held while one part of a model is read; given in the order in which it was asked for. A
        model that is ahead of the image waits, for at most `hold_s`."""
        self._loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(waiter)
        self._admit()
        patience = self._loop.call_later(self._hold_s, self._admit, waiter)
        try:
            await waiter
            yield
        finally:
            patience.cancel()
            if waiter.done() and not waiter.cancelled():
                self._models -= 1
            else:
                with contextlib.suppress(ValueError):  # `_admit` has passed it over
                    self._waiting.remove(waiter)
            self._admit()

    def told(self, before: SharedBytes) -> str:
        """For people: how the link was shared since `before`; "" when it was not."""
        share = self._shared.since(before).model_share
        if share is None:
            return ""
        return (
            f"{100 * share:.0f} % of the link while the image arrived "
            f"({100 * self.share:.0f} % chosen)"
        )

    def _look_again(self) -> None:
        """From any thread: somebody may get a turn now."""
        loop = self._loop if self._waiting else None
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # closed: nobody waits any more
                loop.call_soon_threadsafe(self._admit)

    def _admit(self, impatient: asyncio.Future[None] | None = None) -> None:
        while self._waiting and self._models < model_connections(self.share, self._image):
            if impatient not in self._waiting and is_ahead(
                self._model_progress, self._image_progress
            ):
                break
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._models += 1
                waiter.set_result(None)
