"""The gateways that are compared, and the upstream and load that they share.

Each contender is started in a process group of its own, pinned to core 0; nginx (the upstream) and
wrk (the load) share the other cores. The group is killed between rows: a router of the row before
that still runs halves the next one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from zeropull.controlapi.messages import AccessKey, EndpointRoute, Routes, Target, VariantRoute
from zeropull.resources.settings import GatewaySettings, ServeSettings, Settings

REPOSITORY = Path(__file__).resolve().parent.parent
VENVS = REPOSITORY / "build" / "bench-venvs"
READY_S = 60.0
ENDPOINT = "bench"
KEY = AccessKey("BENCHKEY", "benchsecret", "000000000000")
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
STREAM_BYTES = 3600  # nginx takes at most a page of text; of a streamed answer


class Skipped(Exception):
    """This contender cannot run here; the text says why."""


@dataclass(frozen=True, slots=True)
class Started:
    """A gateway that answers."""

    port: int
    path: str
    stream_path: str | None
    headers: dict[str, str] = field(default_factory=dict)
    stream_headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """Where things lie and which ports the upstream has."""

    folder: Path
    upstream: int
    upstream_stream: int


Starter = Callable[[Place, contextlib.ExitStack], Started]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process_group(
    command: list[str], log: Path, *, core: str | None = "0", env: dict[str, str] | None = None
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


# ----------------------------------------------------------------------------- the upstream


@contextlib.contextmanager
def upstream(folder: Path, core: str) -> Iterator[Place]:
    """nginx with one worker: a small answer on one port, a chunked one on the other."""
    if shutil.which("nginx") is None:
        raise Skipped("nginx is not installed (apt-get install nginx-light)")
    plain, streamed = free_port(), free_port()
    answer = json.dumps(ANSWER)
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
  server {{ listen 127.0.0.1:{plain} backlog=4096;
    location / {{ default_type application/json; return 200 '{answer}'; }} }}
  server {{ listen 127.0.0.1:{streamed} backlog=4096;
    location / {{ ssi on; ssi_types *; default_type text/plain;
      return 200 '{"data: token " * (STREAM_BYTES // 12)}'; }} }}
}}
"""
    )
    command = ["nginx", "-c", str(configuration), "-p", str(folder)]
    with process_group(command, folder / "nginx.log", core=core) as process:
        wait_ready(plain, "/invocations", process, b"{}")
        yield Place(folder, plain, streamed)


# ----------------------------------------------------------------------------- the contenders


def direct(place: Place, stack: contextlib.ExitStack) -> Started:
    return Started(place.upstream, "/invocations", None)


def _ours(place: Place, stack: contextlib.ExitStack, *, signed: bool) -> Started:
    run_dir = place.folder / f"run-{time.monotonic_ns()}"
    run_dir.mkdir()
    port = free_port()
    settings = Settings(
        serve=ServeSettings(
            port=port, state_dir=str(run_dir), run_dir=str(run_dir), log_level="error"
        ),
        gateway=GatewaySettings(verify_signatures=signed),
        gateway_token="bench",
    )
    endpoints = tuple(
        EndpointRoute(
            name,
            KEY.account,
            "InService",
            variants=(
                VariantRoute(
                    "AllTraffic",
                    strategy="LEAST_OUTSTANDING_REQUESTS",
                    targets=(
                        Target(f"copy-{name}", "i-1", "127.0.0.1", upstream, max_concurrency=1024),
                    ),
                ),
            ),
        )
        for name, upstream in (
            (ENDPOINT, place.upstream),
            (f"{ENDPOINT}-stream", place.upstream_stream),
        )
    )
    routes = Routes(1, keys=(KEY,), endpoints=endpoints)
    (run_dir / "routes.json").write_bytes(msgspec.json.encode(routes))
    (run_dir / "settings.json").write_bytes(msgspec.json.encode(settings))
    process = stack.enter_context(
        process_group(
            [
                *(sys.executable, "-m", "zeropull.daemons.gateway"),
                *("--settings", str(run_dir / "settings.json")),
            ],
            place.folder / "ours.log",
        )
    )
    path = f"/endpoints/{ENDPOINT}/invocations"
    stream_path = f"/endpoints/{ENDPOINT}-stream/invocations-response-stream"
    wait_ready(port, "/healthz", process, None)
    return Started(port, path, stream_path)


def ours(place: Place, stack: contextlib.ExitStack) -> Started:
    return _ours(place, stack, signed=False)


def ours_signed(place: Place, stack: contextlib.ExitStack) -> Started:
    return _ours(place, stack, signed=True)


def sign(started: Started, path: str, body: bytes) -> dict[str, str]:
    """SigV4 headers; good for five minutes, which is longer than one row."""
    request = AWSRequest(
        "POST",
        f"http://127.0.0.1:{started.port}{path}",
        data=body,
        headers={"Content-Type": "application/json"},
    )
    SigV4Auth(
        Credentials(KEY.access_key_id, KEY.secret_access_key), "sagemaker", "us-east-1"
    ).add_auth(request)
    return {name: request.headers[name] for name in ("X-Amz-Date", "Authorization", "Content-Type")}


def haproxy(place: Place, stack: contextlib.ExitStack) -> Started:
    if shutil.which("haproxy") is None:
        raise Skipped("haproxy is not installed (apt-get install haproxy)")
    port = free_port()
    configuration = place.folder / "haproxy.cfg"
    configuration.write_text(
        f"""global
  nbthread 1
  maxconn 8192
defaults
  mode http
  timeout connect 1s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend front
  bind 127.0.0.1:{port} backlog 4096
  use_backend streamed if {{ path /stream }}
  default_backend plain
backend plain
  balance leastconn
  server one 127.0.0.1:{place.upstream}
backend streamed
  balance leastconn
  server one 127.0.0.1:{place.upstream_stream}
"""
    )
    process = stack.enter_context(
        process_group(["haproxy", "-db", "-f", str(configuration)], place.folder / "haproxy.log")
    )
    wait_ready(port, "/invocations", process, CHAT)
    return Started(port, "/invocations", "/stream")


def _installed(name: str, requirements: list[str]) -> Path:
    """The bin folder of a virtual environment with these packages, made once."""
    venv = VENVS / name
    marker = venv / ".installed"
    if not marker.exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
            subprocess.run(
                [str(venv / "bin/pip"), "install", "--quiet", *requirements],
                check=True,
                timeout=900,
            )
        except (subprocess.SubprocessError, OSError) as error:
            raise Skipped(f"pip install {' '.join(requirements)} failed: {error}") from error
        marker.touch()
    return venv / "bin"


def _rust_router(
    place: Place,
    stack: contextlib.ExitStack,
    *,
    package: str,
    module: str,
    policy: str,
) -> Started:
    bin_folder = _installed(package, [package])
    port = free_port()
    process = stack.enter_context(
        process_group(
            [
                *(str(bin_folder / "python"), "-m", module),
                *("--worker-urls", f"http://127.0.0.1:{place.upstream}"),
                *("--host", "127.0.0.1", "--port", str(port), "--policy", policy),
                *("--prometheus-port", str(free_port()), "--log-level", "error"),
            ],
            place.folder / f"{package}.log",
        )
    )
    wait_ready(port, "/v1/chat/completions", process, CHAT)
    return Started(port, "/v1/chat/completions", None)


def vllm_router(place: Place, stack: contextlib.ExitStack) -> Started:
    return _rust_router(
        place,
        stack,
        package="vllm-router",
        module="vllm_router.launch_router",
        policy="round_robin",
    )


def sglang_router(place: Place, stack: contextlib.ExitStack) -> Started:
    return _rust_router(
        place,
        stack,
        package="sglang-router",
        module="sglang_router.launch_router",
        policy="round_robin",
    )


def litellm(place: Place, stack: contextlib.ExitStack) -> Started:
    bin_folder = _installed("litellm", ["litellm[proxy]"])
    port = free_port()
    configuration = place.folder / "litellm.yaml"
    configuration.write_text(
        f"""model_list:
  - model_name: bench
    litellm_params:
      model: openai/bench
      api_base: http://127.0.0.1:{place.upstream}/v1
      api_key: sk-upstream
general_settings:
  master_key: sk-bench
"""
    )
    process = stack.enter_context(
        process_group(
            [
                *(str(bin_folder / "litellm"), "--config", str(configuration)),
                *("--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"),
            ],
            place.folder / "litellm.log",
            env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"},
        )
    )
    wait_ready(port, "/v1/chat/completions", process, CHAT)
    headers = {"Authorization": "Bearer sk-bench"}
    return Started(port, "/v1/chat/completions", None, headers)


def ray_serve(place: Place, stack: contextlib.ExitStack) -> Started:
    bin_folder = _installed("ray", ["ray[serve]"])
    port = free_port()
    application = place.folder / "ray_bench.py"
    application.write_text(
        f"""import time
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

@serve.deployment(max_ongoing_requests=1024)
class Echo:
    async def __call__(self, request: Request):
        await request.body()
        return Response({json.dumps(ANSWER)!r}, media_type="application/json")

ray.init(num_cpus=2, include_dashboard=False, configure_logging=False)
serve.start(http_options={{"host": "127.0.0.1", "port": {port}}})
serve.run(Echo.bind(), route_prefix="/")
time.sleep(100000)
"""
    )
    process = stack.enter_context(
        process_group(
            [str(bin_folder / "python"), str(application)],
            place.folder / "ray.log",
            core=None,  # its proxy and its replica are processes of their own
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        )
    )
    # Ray's own daemons leave the process group.
    stack.callback(
        subprocess.run,
        [str(bin_folder / "ray"), "stop", "--force"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    wait_ready(port, "/", process, CHAT)
    return Started(port, "/", None)


CONTENDERS: dict[str, Starter] = {
    "direct": direct,
    "zeropull": ours,
    "zeropull-sigv4": ours_signed,
    "haproxy": haproxy,
    "vllm-router": vllm_router,
    "sglang-router": sglang_router,
    "litellm": litellm,
    "ray-serve": ray_serve,
}
