"""The trivial upstream that all gateways share (nginx, one worker), and how processes are run here.

A gateway has core 0 for itself; the upstream and the load share the next one. Each process group is
killed between contenders: a router that still runs halves the next one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

READY_S = 90.0
GATEWAY_CORE = "0"
OTHER_CORE = "1" if (os.cpu_count() or 1) > 1 else "0"
CHAT = b'{"model":"bench","messages":[{"role":"user","content":"hello there, how are you?"}]}'
ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "bench",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Fine."}}
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    "data": [{"id": "bench", "object": "model"}],
}
STREAM_BYTES = 3600  # of a streamed answer; nginx takes at most a page of text


class Skipped(Exception):
    """This contender cannot run here; the text says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where things lie and which ports the upstream has."""

    folder: Path
    plain: int
    streamed: int
    counted: int  # answers with the request's ID and writes it into `ids`

    @property
    def ids(self) -> Path:
        return self.folder / "ids.log"

    def requests(self) -> int:
        """How many requests the upstream has seen, this question included."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.counted}/count", timeout=5) as answer:
            found = re.search(r"^\s*\d+ \d+ (\d+)", answer.read().decode(), re.MULTILINE)
        if found is None:
            raise RuntimeError("nginx gives no stub_status")
        return int(found[1])


@contextlib.contextmanager
def upstream(folder: Path) -> Iterator[Place]:
    """A small answer on one port, a chunked one on the next, and one that is counted by ID."""
    if shutil.which("nginx") is None:
        raise SystemExit("bench gateway: nginx is not installed (apt-get install nginx)")
    place = Place(folder, free_port(), free_port(), free_port())
    answer = json.dumps(ANSWER)
    request_id = "$http_x_amzn_sagemaker_custom_attributes"
    # SSI takes the length away, which makes nginx send the answer in chunks.
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"""daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_max_body_size 64m; client_body_buffer_size 2m;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_requests 100000000; keepalive_timeout 600s;
  log_format id '{request_id}';
  server {{ listen 127.0.0.1:{place.plain} backlog=4096;
    location / {{ default_type application/json; return 200 '{answer}'; }} }}
  server {{ listen 127.0.0.1:{place.streamed} backlog=4096;
    location / {{ ssi on; ssi_types *; default_type text/plain;
      return 200 '{"data: token " * (STREAM_BYTES // 12)}'; }} }}
  server {{ listen 127.0.0.1:{place.counted} backlog=4096;
    location = /count {{ stub_status; }}
    location / {{ access_log {place.ids} id; return 200 '{request_id}'; }} }}
}}
"""
    )
    command = ["nginx", "-c", str(configuration), "-p", str(folder)]
    with process_group(command, folder / "nginx.log", core=OTHER_CORE) as process:
        wait_ready(place.plain, "/invocations", process, b"{}")
        yield place


@contextlib.contextmanager
def process_group(
    command: list[str],
    log: Path,
    *,
    core: str | None = GATEWAY_CORE,
    env: dict[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A running command with everything that it starts; killed whole at the end."""
    pinned = ["taskset", "-c", core, *command] if core is not None else command
    with log.open("ab") as output:
        process = subprocess.Popen(
            pinned, stdout=output, stderr=output, start_new_session=True, env=env
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def cpu_s(session: int) -> float:
    """Processor time of all processes of a session, so far."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_ready(port: int, path: str, process: subprocess.Popen[bytes], body: bytes | None) -> None:
    """Until POST (or GET without a body) `path` answers below 500."""
    deadline = time.monotonic() + READY_S
    error = "no answer"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Skipped(f"exited with {process.returncode} at start")
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}",
            data=body,
            headers={"Content-Type": "application/json", "Authorization": "Bearer sk-bench"},
        )
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except urllib.error.HTTPError as answer:
            if answer.code in (400, 403):  # it is there, and wants a signature
                return
            error = f"HTTP {answer.code}"
        except OSError as problem:
            error = str(problem)
        time.sleep(0.1)
    raise Skipped(f"not ready within {READY_S:.0f} s: {error}")
