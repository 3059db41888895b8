"""The last rung: nothing is mounted before all of its data is here. It works on every kernel."""

from __future__ import annotations

from zeropull.delivery.arriving import ArrivingLayer
from zeropull.delivery.filling import Cause, Filler, Wanted
from zeropull.errors import Unavailable


class WholeTransfer:
    """`watch` returns when the layer is whole."""

    name = "whole"

    def __init__(self, filler: Filler) -> None:
        self._filler = filler

    def watch(self, layer: ArrivingLayer) -> None:
        """Raises:
        Unavailable, DiskFull: it does not come.
        """
        blocks = [Wanted(layer, block) for block in range(layer.blocks)]
        self._filler.stream(blocks, Cause.PROFILE)
        if layer.missing:
            raise Unavailable(f"{layer.missing} blocks of {layer.index.chain_id} did not come")
        layer.finish()

    def release(self, layer: ArrivingLayer) -> None:
        """It was never anything but an ordinary layer."""
