from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from zeropull.snapshotter.counters import Count, Counters
from zeropull.snapshotter.status import render_metrics
from zeropull.snapshotter.usage import Cancelled, measure_usage


def test_metrics_have_every_counter() -> None:
    counters = Counters()
    counters.add(Count.HITS, 3)
    text = render_metrics(counters.snapshot())
    assert "zeropull_snapshotter_hits_total 3\n" in text
    assert "zeropull_snapshotter_misses_total 0\n" in text


def test_usage_counts_hard_links_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(8192))
    os.link(tmp_path / "a", tmp_path / "b")
    (tmp_path / "dir").mkdir()
    usage = measure_usage(tmp_path, threading.Event())
    assert usage.inodes == 3
    assert usage.size_bytes >= 8192


def test_usage_stops_when_cancelled(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        measure_usage(tmp_path, stop)
