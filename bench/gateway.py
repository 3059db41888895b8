"""Gateways side by side: one upstream (nginx), one load (wrk), one core for each gateway.

    ./run bench gateway [--quick] [--only A,B] [--memory-minutes 10] [--json FILE]

The gateway has core 0 for itself, nginx and wrk share the next one; each row is the median of its
rounds, after a second of warm-up. `core busy` is the share of its core that the gateway used: below
1, the load or the upstream was what held it up. zeropull runs with everything on (routing, metrics,
queueing), once without and once with SigV4; the others check no signature. Ray Serve answers by
itself (it has no upstream), and its processes use all cores. Streams: only where a gateway passes
them on as they are. Then thousands of requests with an ID each are counted at both ends, and with
--memory-minutes the gateway's memory is watched under load. What cannot run here is a stated skip.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.both_ends import Count, count_both_ends
from bench.contenders import CONTENDERS, Started, messages, version
from bench.steady_memory import Memory, watch_memory
from bench.upstream import CHAT, Place, Skipped, cpu_s, upstream
from bench.wrk import load
from zeropull import __version__

CONCURRENCIES = (1, 32, 512)
LARGE_BODY_BYTES = 1_000_000
WARM_UP_S = 1
PROGRAMS = {"wrk": "wrk", "nginx": "nginx", "taskset": "util-linux"}  # and their packages


@dataclass(frozen=True, slots=True)
class Run:
    """One row: medians over the rounds. The last two are None for what is no single session."""

    gateway: str
    concurrency: int
    body_bytes: int
    streaming: bool
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int
    cpu_us_per_request: float | None = None
    core_busy: float | None = None


def main(argv: list[str]) -> int:
    arguments = _arguments(argv)
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            print(f"bench gateway: {program} is not installed ({package})", file=sys.stderr)
            return 1
    machine = _machine(arguments)
    print(json.dumps(machine), flush=True)
    runs: list[Run] = []
    skips: dict[str, str] = {}
    counts: list[Count] = []
    memory: Memory | None = None
    with tempfile.TemporaryDirectory(prefix="zp-bench-") as name, upstream(Path(name)) as place:
        for contender in arguments.only:
            try:
                runs += _rows(contender, place, arguments)
            except Skipped as reason:
                skips[contender] = str(reason)
                print(f"{contender:<16} skipped: {reason}", flush=True)
        if "zeropull-sigv4" in arguments.only:
            with contextlib.ExitStack() as stack:
                started = CONTENDERS["zeropull-sigv4"](place, stack)
                counts = count_both_ends(place, started, 2000 if arguments.quick else 20_000)
            print(*counts, sep="\n", flush=True)
        if arguments.memory_minutes:
            with contextlib.ExitStack() as stack:
                started = CONTENDERS["zeropull-sigv4"](place, stack)
                memory = watch_memory(place, started, arguments.memory_minutes, large_body())
            print(memory, flush=True)
    print(*_findings(runs), sep="\n")
    result = {
        "machine": machine,
        "runs": [asdict(run) for run in runs],
        "skipped": skips,
        "counted": [asdict(count) for count in counts],
        "memory": asdict(memory) if memory else None,
    }
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench gateway",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--only", help="comma-separated contenders; default: all of them")
    parser.add_argument("--seconds", type=int, help="length of one round; default: 2")
    parser.add_argument("--rounds", type=int, help="rounds of a row; default: 3")
    parser.add_argument("--concurrency", help="comma-separated; default: 1,32,512")
    parser.add_argument("--small-only", action="store_true", help="no large bodies, no streaming")
    parser.add_argument(
        "--quick", action="store_true", help="one round of a second, small bodies, c=1 and 32"
    )
    parser.add_argument("--memory-minutes", type=int, default=0, help="watch the memory this long")
    parser.add_argument("--memory-only", action="store_true", help="no rows, only the memory")
    found = parser.parse_args(argv)
    found.seconds = found.seconds or (1 if found.quick else 2)
    found.rounds = found.rounds or (1 if found.quick else 3)
    found.small_only |= found.quick
    default = "1,32" if found.quick else ",".join(map(str, CONCURRENCIES))
    found.concurrency = [int(text) for text in (found.concurrency or default).split(",")]
    found.only = found.only.split(",") if found.only else list(CONTENDERS)
    if found.memory_only:
        found.only, found.memory_minutes = [], found.memory_minutes or 10
    for name in found.only:
        if name not in CONTENDERS:
            parser.error(f"unknown contender {name}; there are {', '.join(CONTENDERS)}")
    return found


def _rows(contender: str, place: Place, arguments: argparse.Namespace) -> list[Run]:
    shapes = [(CHAT, False)]
    if not arguments.small_only:
        shapes += [(large_body(), False), (CHAT, True)]
    rows = []
    with contextlib.ExitStack() as stack:
        started = CONTENDERS[contender](place, stack)
        for body, streaming in shapes:
            if streaming and started.stream_path is None:
                continue
            for concurrency in arguments.concurrency:
                run = _row(contender, started, place, body, streaming, concurrency, arguments)
                print(_line(run), flush=True)
                rows.append(run)
    return rows


def _row(
    contender: str,
    started: Started,
    place: Place,
    body: bytes,
    streaming: bool,
    concurrency: int,
    arguments: argparse.Namespace,
) -> Run:
    path = (started.stream_path if streaming else started.path) or started.path
    url = f"http://127.0.0.1:{started.port}{path}"
    sent = messages(started, path, body)

    def one(seconds: int) -> tuple[Any, float, float]:
        session = started.process.pid if started.process and contender != "ray-serve" else 0
        before_s, began_s = cpu_s(session), time.monotonic()
        seen = load(
            place.folder,
            url,
            messages=sent,
            concurrency=concurrency,
            seconds=seconds,
        )
        return seen, cpu_s(session) - before_s, time.monotonic() - began_s

    one(WARM_UP_S)
    rounds = [one(arguments.seconds) for _ in range(arguments.rounds)]
    requests, cpu = sum(r[0].requests for r in rounds), sum(r[1] for r in rounds)
    has_core = cpu > 0 and started.process is not None
    return Run(
        contender,
        concurrency,
        len(body),
        streaming,
        round(statistics.median(r[0].requests_per_s for r in rounds), 1),
        round(statistics.median(r[0].p50_ms for r in rounds), 4),
        round(statistics.median(r[0].p99_ms for r in rounds), 4),
        sum(r[0].errors for r in rounds),
        round(cpu / requests * 1e6, 1) if has_core and requests else None,
        round(cpu / sum(r[2] for r in rounds), 2) if has_core else None,
    )


def _line(run: Run) -> str:
    cpu = "" if run.cpu_us_per_request is None else f"  cpu {run.cpu_us_per_request:.0f} us"
    busy = "" if run.core_busy is None else f"  core busy {run.core_busy:.2f}"
    return (
        f"{run.gateway:<16} c={run.concurrency:<4} body={run.body_bytes:<8} "
        f"{'stream' if run.streaming else 'unary':<6} {run.requests_per_s:>8.0f} req/s  "
        f"p50 {run.p50_ms:.3f} ms  p99 {run.p99_ms:.3f} ms  errors {run.errors}{cpu}{busy}"
    )


def _findings(runs: list[Run]) -> list[str]:
    """Against HAProxy, and against no gateway at all."""
    by = {(r.gateway, r.concurrency, r.body_bytes, r.streaming): r for r in runs}
    lines = []
    for (name, concurrency, size, streaming), run in by.items():
        shape = (concurrency, size, streaming)
        yardstick, bare = by.get(("haproxy", *shape)), by.get(("direct", *shape))
        if name in ("direct", "haproxy"):
            continue
        told = []
        if yardstick is not None and yardstick.requests_per_s:
            told.append(f"{run.requests_per_s / yardstick.requests_per_s:.2f} x HAProxy")
        if bare is not None and concurrency == 1 and run.requests_per_s:
            told.append(f"{run.p50_ms - bare.p50_ms:+.3f} ms at the median")
        if told:
            kind = "streamed" if streaming else f"{size} bytes"
            lines.append(f"{name:<16} c={concurrency:<4} {kind:<14} {', '.join(told)}")
    return lines


def large_body() -> bytes:
    filler = "x" * (LARGE_BODY_BYTES - len(CHAT))
    return CHAT.replace(b"hello", f"{filler}hello".encode())


def _machine(arguments: argparse.Namespace) -> dict[str, Any]:
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    versions = {name: found for name in arguments.only if (found := version(name))}
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count() or 1,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {"zeropull": __version__, **versions},
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
    }
