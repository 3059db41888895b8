"""Figures of a node, from the files and programs that give them."""

from __future__ import annotations

from pathlib import Path

from zeropull.controlapi.messages import LabelledCounter
from zeropull.nodeagent.readings import (
    CpuReading,
    agent_counters,
    cpu_percent,
    image_counters,
    parse_gpus,
    read_cpu,
    read_memory_bytes,
)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_two_busy_cores_are_two_hundred_percent() -> None:
    assert cpu_percent(CpuReading(10.0, 3.0), CpuReading(20.0, 23.0)) == 200.0
    assert cpu_percent(CpuReading(10.0, 3.0), CpuReading(10.0, 3.0)) == 0.0


def test_cgroups_of_version_1_are_read(tmp_path: Path) -> None:
    write(tmp_path / "cpuacct/fleet/copies/cpuacct.usage", "2500000000\n")
    write(tmp_path / "memory/fleet/copies/memory.usage_in_bytes", "5000\n")
    write(tmp_path / "memory/fleet/copies/memory.stat", "cache 9\ntotal_inactive_file 1500\n")
    cpu = read_cpu("/fleet/copies", tmp_path)
    assert cpu is not None
    assert cpu.used_s == 2.5
    assert read_memory_bytes("/fleet/copies", tmp_path) == 3500


def test_cgroups_of_version_2_are_read(tmp_path: Path) -> None:
    write(tmp_path / "fleet/copies/cpu.stat", "usage_usec 1500000\nuser_usec 1\n")
    write(tmp_path / "fleet/copies/memory.current", "5000\n")
    write(tmp_path / "fleet/copies/memory.stat", "anon 9\ninactive_file 4000\n")
    cpu = read_cpu("/fleet/copies", tmp_path)
    assert cpu is not None
    assert cpu.used_s == 1.5
    assert read_memory_bytes("/fleet/copies", tmp_path) == 1000


def test_a_group_that_is_not_there_has_no_figures(tmp_path: Path) -> None:
    assert read_cpu("/gone", tmp_path) is None
    assert read_memory_bytes("/gone", tmp_path) is None


def test_gpus_are_summed() -> None:
    table = "35, 1024, 4096\n100, 4096, 4096\n[N/A], [N/A], 4096\n"
    assert parse_gpus(table) == {"GPUUtilization": 135.0, "GPUMemoryUtilization": 125.0}
    assert parse_gpus("No devices were found\n") == {}


def test_counters_are_named_as_prometheus_has_it() -> None:
    counters = agent_counters(
        registry_bytes=5,
        model_store_bytes=6,
        verification_failures=7,
    )
    assert counters == {
        "zeropull_node_registry_bytes_total": 5.0,
        "zeropull_node_model_store_bytes_total": 6.0,
        "zeropull_node_verification_failures_total": 7.0,
    }
    assert image_counters({"cached": 2}, {"layer_missing": 1}) == (
        LabelledCounter("zeropull_node_images_total", "path", "cached", 2),
        LabelledCounter("zeropull_node_image_fallbacks_total", "reason", "layer_missing", 1),
    )
