"""Datapoints that can be merged: count, sum, extremes and a sketch for percentiles.

Percentiles come from DDSketch (Masson, Rim and Lee, VLDB 2019): each is within 1 % of a value that
was really observed, whatever the distribution.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ddsketch import DDSketch
from ddsketch.mapping import LogarithmicMapping
from ddsketch.pb import ddsketch_pb2
from ddsketch.pb.proto import DDSketchProto

from zeropull.errors import InvalidInput

RELATIVE_ACCURACY = 0.01
PERCENTILE = re.compile(r"p(100(\.0+)?|\d{1,2}(\.\d+)?)")
_BUCKETS = LogarithmicMapping(RELATIVE_ACCURACY)  # as DDSketch has it


@dataclass(slots=True)
class Point:
    """What is known of one metric in one period. An empty point has `count` 0.

    `sketch` is None for metrics without percentiles, and for points given as statistic sets.
    """

    count: float = 0.0
    total: float = 0.0
    least: float = math.inf
    most: float = -math.inf
    sketch: DDSketch | None = None

    def add(self, value: float, count: float = 1.0, *, with_sketch: bool = False) -> None:
        """Add `count` observations of `value`."""
        self.count += count
        self.total += value * count
        self.least = min(self.least, value)
        self.most = max(self.most, value)
        if with_sketch:
            if self.sketch is None:
                self.sketch = DDSketch(RELATIVE_ACCURACY)
            self.sketch.add(value, count)

    def add_all(self, values: Sequence[float]) -> None:
        """Add one observation of each, with percentiles; much quicker than one by one."""
        if not values:
            return
        self.count += len(values)
        self.total += sum(values)
        self.least = min(self.least, *values)
        self.most = max(self.most, *values)
        if self.sketch is None:
            self.sketch = DDSketch(RELATIVE_ACCURACY)
        # Values of one bucket of the sketch are added at once, as the value that it stands for.
        for bucket, count in Counter(_BUCKETS.key(v) for v in values if v > 0).items():
            self.sketch.add(_BUCKETS.value(bucket), count)
        for value in values:
            if value <= 0:
                self.sketch.add(value)

    def merge(self, other: Point) -> None:
        """Take in another point of the same metric; `other` stays as it is."""
        self.count += other.count
        self.total += other.total
        self.least = min(self.least, other.least)
        self.most = max(self.most, other.most)
        if other.sketch is not None:
            if self.sketch is None:
                self.sketch = DDSketch(RELATIVE_ACCURACY)
            self.sketch.merge(other.sketch)

    def statistic(self, name: str) -> float | None:
        """A CloudWatch statistic: Sum, Average, Minimum, Maximum, SampleCount or p0 to p100.

        None when it cannot be told: nothing observed, or a percentile of a statistic set.

        Raises:
            InvalidInput: no such statistic.
        """
        if self.count <= 0:
            return None
        match name:
            case "Sum":
                return self.total
            case "Average":
                return self.total / self.count
            case "Minimum":
                return self.least
            case "Maximum":
                return self.most
            case "SampleCount":
                return self.count
            case _ if PERCENTILE.fullmatch(name):
                return self._percentile(float(name[1:]))
            case _:
                raise InvalidInput(f"unknown statistic {name!r}")

    def _percentile(self, percent: float) -> float | None:
        if self.least == self.most:
            return self.most
        if self.sketch is None:
            return None
        value: float | None = self.sketch.get_quantile_value(percent / 100)
        # A bucket's middle may lie a little outside of what was seen: the extremes are exact.
        return None if value is None else min(self.most, max(self.least, value))


def encode_sketch(sketch: DDSketch | None) -> bytes | None:
    if sketch is None:
        return None
    encoded: bytes = DDSketchProto.to_proto(sketch).SerializeToString()  # type: ignore[no-untyped-call]  # ddsketch has no stubs
    return encoded


def decode_sketch(data: bytes | None) -> DDSketch | None:
    if data is None:
        return None
    message = ddsketch_pb2.DDSketch()
    message.ParseFromString(data)
    sketch: DDSketch = DDSketchProto.from_proto(message)  # type: ignore[no-untyped-call]  # no stubs
    return sketch
