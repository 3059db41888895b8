"""The load: wrk, one thread, closed loop, on the core that the upstream has too."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench.upstream import OTHER_CORE

_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


@dataclass(frozen=True, slots=True)
class Message:
    headers: Mapping[str, str]
    body: bytes

    def sent_to(self, url: str) -> bytes:
        """The request as an SDK would send it: the host first, the length last."""
        where = urlsplit(url)
        headers = {"Host": where.netloc, **self.headers, "Content-Length": str(len(self.body))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST {where.path} HTTP/1.1\r\n{lines}\r\n".encode() + self.body


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
    messages: Sequence[Message],
    concurrency: int,
    seconds: int,
) -> Load:
    """Sends the messages in turn, on every connection."""
    script = folder / "request.lua"
    lines = ["local made, next = {}, 0"]
    for number, message in enumerate(messages):
        file = folder / f"request-{number}"
        file.write_bytes(message.sent_to(url))
        lines.append(f'local f = io.open("{file}", "rb"); made[{number}] = f:read("*a"); f:close()')
    lines.append(f"function request() next = (next + 1) % {len(messages)}; return made[next] end")
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
