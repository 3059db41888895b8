"""The load: wrk, one thread, closed loop, a fixed body, on the core that the upstream has too."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.upstream import OTHER_CORE

_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk saw. An answer that is not 2xx, a socket error and a time-out are errors."""

    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int


def load(
    folder: Path,
    url: str,
    *,
    body: bytes,
    headers: Mapping[str, str],
    concurrency: int,
    seconds: int,
) -> Load:
    script, body_file = folder / "request.lua", folder / "request.body"
    body_file.write_bytes(body)
    lines = [
        'wrk.method = "POST"',
        f'local f = io.open("{body_file}", "rb"); wrk.body = f:read("*a"); f:close()',
        *(f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()),
    ]
    script.write_text("\n".join(lines) + "\n")
    output = subprocess.run(
        [
            *("taskset", "-c", OTHER_CORE, "wrk", "-t1", f"-c{concurrency}", f"-d{seconds}s"),
            *("--timeout", "10s", "--latency", "-s", str(script), url),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    requests = re.search(r"(\d+) requests in", output)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    errors = sum(int(count) for count in re.findall(r"Non-2xx or 3xx responses: (\d+)", output))
    broken = re.search(r"connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    errors += sum(int(count) for count in broken.groups()) if broken else 0
    return Load(
        int(requests[1]) if requests else 0,
        float(rate[1]) if rate else 0.0,
        _percentile(output, 50),
        _percentile(output, 99),
        errors,
    )


def _percentile(output: str, percent: int) -> float:
    found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s|m)$", output, re.MULTILINE)
    return float(found[1]) * _MS[found[2]] if found else 0.0
