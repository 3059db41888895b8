"""Gateways side by side: one upstream (nginx), one load generator (wrk), one core each.

The gateway has core 0 for itself, nginx and wrk share the next one. Requests are counted by wrk;
an answer that is not 2xx, a socket error or a time-out is an error. A contender that cannot run
here is a stated skip, never a zero.
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
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.contenders import CHAT, CONTENDERS, Place, Skipped, Started, sign, upstream

CONCURRENCIES = (1, 32, 512)
LARGE_BODY_BYTES = 1_000_000
WARM_UP_S = 1

_LATENCY = {
    "us": 0.001,
    "ms": 1.0,
    "s": 1000.0,
    "m": 60_000.0,
}


@dataclass(frozen=True, slots=True)
class Run:
    """One row: medians over the rounds."""

    gateway: str
    concurrency: int
    body_bytes: int
    streaming: bool
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench gateway", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--only", help="comma-separated contenders; default: all of them")
    parser.add_argument("--seconds", type=int, default=4, help="length of one round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of a row")
    parser.add_argument("--concurrency", help="comma-separated; default: 1,32,512")
    parser.add_argument("--small-only", action="store_true", help="no large bodies, no streaming")
    arguments = parser.parse_args(argv)
    names = arguments.only.split(",") if arguments.only else list(CONTENDERS)
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        parser.error(f"unknown contender {unknown[0]}; there are {', '.join(CONTENDERS)}")
    if shutil.which("wrk") is None:
        print("bench gateway: wrk is not installed (apt-get install wrk)", file=sys.stderr)
        return 1
    concurrencies = (
        tuple(int(text) for text in arguments.concurrency.split(","))
        if arguments.concurrency
        else CONCURRENCIES
    )
    runs: list[Run] = []
    skips: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="zp-bench-") as name:
        folder = Path(name)
        core = "1" if (os.cpu_count() or 1) > 1 else "0"
        with upstream(folder, core) as place:
            for contender in names:
                try:
                    runs += _rows(contender, place, core, concurrencies, arguments)
                except Skipped as reason:
                    skips[contender] = str(reason)
                    print(f"{contender:<16} skipped: {reason}", flush=True)
    result = {"machine": _machine(), "runs": [asdict(run) for run in runs], "skipped": skips}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _rows(
    contender: str,
    place: Place,
    core: str,
    concurrencies: tuple[int, ...],
    arguments: argparse.Namespace,
) -> list[Run]:
    shapes = [(CHAT, False)]
    if not arguments.small_only:
        shapes += [(_large_body(), False), (CHAT, True)]
    rows = []
    with contextlib.ExitStack() as stack:
        started = CONTENDERS[contender](place, stack)
        for body, streaming in shapes:
            if streaming and started.stream_path is None:
                continue
            for concurrency in concurrencies:
                run = _row(contender, started, place, core, body, streaming, concurrency, arguments)
                print(
                    f"{run.gateway:<16} c={run.concurrency:<4} body={run.body_bytes:<8} "
                    f"{'stream' if run.streaming else 'unary':<6} {run.requests_per_s:>8.0f} req/s "
                    f"p50 {run.p50_ms:.3f} ms  p99 {run.p99_ms:.3f} ms  errors {run.errors}",
                    flush=True,
                )
                rows.append(run)
    return rows


def _row(
    contender: str,
    started: Started,
    place: Place,
    core: str,
    body: bytes,
    streaming: bool,
    concurrency: int,
    arguments: argparse.Namespace,
) -> Run:
    path = (started.stream_path if streaming else started.path) or started.path
    headers = {"Content-Type": "application/json", **started.headers}
    if contender == "zeropull-sigv4":
        headers |= sign(started, path, body)
    script = place.folder / "request.lua"
    body_file = place.folder / "request.body"
    body_file.write_bytes(body)
    lines = [
        'wrk.method = "POST"',
        f'local f = io.open("{body_file}", "rb"); wrk.body = f:read("*a"); f:close()',
    ]
    lines += [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
    script.write_text("\n".join(lines) + "\n")
    url = f"http://127.0.0.1:{started.port}{path}"
    _wrk(core, concurrency, WARM_UP_S, script, url)
    rounds = [
        _wrk(core, concurrency, arguments.seconds, script, url) for _ in range(arguments.rounds)
    ]
    return Run(
        contender,
        concurrency,
        len(body),
        streaming,
        round(statistics.median(r[0] for r in rounds), 1),
        round(statistics.median(r[1] for r in rounds), 4),
        round(statistics.median(r[2] for r in rounds), 4),
        sum(r[3] for r in rounds),
    )


def _wrk(
    core: str, concurrency: int, seconds: int, script: Path, url: str
) -> tuple[float, float, float, int]:
    """(requests per second, p50 ms, p99 ms, errors)."""
    output = subprocess.run(
        [
            *("taskset", "-c", core, "wrk", "-t1", f"-c{concurrency}", f"-d{seconds}s"),
            *("--timeout", "10s", "--latency", "-s", str(script), url),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    errors = sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", output))
    broken = re.search(r"connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    errors += sum(int(n) for n in broken.groups()) if broken else 0
    return float(rate[1]) if rate else 0.0, _percentile(output, 50), _percentile(output, 99), errors


def _percentile(output: str, percent: int) -> float:
    found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s|m)$", output, re.MULTILINE)
    return float(found[1]) * _LATENCY[found[2]] if found else 0.0


def _large_body() -> bytes:
    filler = "x" * (LARGE_BODY_BYTES - len(CHAT))
    return CHAT.replace(b"hello", f"{filler}hello".encode())


def _machine() -> dict[str, str | int]:
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count() or 1,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
