"""The gateways that are compared: how each is installed, configured and started.

What comes from PyPI lies in environments of its own under build/, made when it is first asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from bench.readings import COUNT_FILE
from bench.upstream import (
    ANSWER,
    CHAT,
    OTHER_CORE,
    Place,
    Skipped,
    free_port,
    process_group,
    wait_ready,
)
from bench.wrk import Message
from zeropull.controlapi.messages import AccessKey, EndpointRoute, Routes, Target, VariantRoute
from zeropull.resources.settings import GatewaySettings, ServeSettings, Settings

REPOSITORY = Path(__file__).resolve().parent.parent
VENVS = REPOSITORY / "build" / "bench-venvs"
INSTALL_S = 900
FREE_BYTES = 4 << 30  # of disk that an installation may need; Ray alone has half a GiB
STOP_S = 20
ENDPOINT = "bench"
COUNTED = "bench-counted"
SIGNED_MESSAGES = 16
SDK = "Boto3/1.44.8 md/Botocore#1.44.8 ua/2.1 os/linux lang/python#3.11 md/pyimpl#CPython"
KEY = AccessKey("BENCHKEY", "benchsecret", "000000000000")


@dataclass(frozen=True, slots=True)
class Started:
    """A gateway that answers. `process` leads its session; None = there is none (direct)."""

    process: subprocess.Popen[bytes] | None
    port: int
    path: str
    stream_path: str | None
    headers: dict[str, str] = field(default_factory=dict)
    signed: bool = False
    invocations: Path | None = None  # the file with how many its readings told of


Starter = Callable[[Place, contextlib.ExitStack], Started]


def direct(place: Place, stack: contextlib.ExitStack) -> Started:
    return Started(None, place.plain, "/invocations", None)


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
            (ENDPOINT, place.plain),
            (f"{ENDPOINT}-stream", place.streamed),
            (COUNTED, place.counted),
        )
    )
    routes = Routes(1, keys=(KEY,), endpoints=endpoints)
    (run_dir / "routes.json").write_bytes(msgspec.json.encode(routes))
    (run_dir / "settings.json").write_bytes(msgspec.json.encode(settings))
    # What reads the gateway's metrics has to be there, or they pile up; on the others' core.
    readings = [sys.executable, "-m", "bench.readings", "--run-dir", str(run_dir)]
    stack.enter_context(process_group(readings, place.folder / "readings.log", core=OTHER_CORE))
    process = stack.enter_context(
        process_group(
            [
                *(sys.executable, "-m", "zeropull.daemons.gateway"),
                *("--settings", str(run_dir / "settings.json")),
            ],
            place.folder / "ours.log",
        )
    )
    wait_ready(port, "/healthz", process, None)
    return Started(
        process,
        port,
        f"/endpoints/{ENDPOINT}/invocations",
        f"/endpoints/{ENDPOINT}-stream/invocations-response-stream",
        signed=signed,
        invocations=run_dir / COUNT_FILE,
    )


def ours(place: Place, stack: contextlib.ExitStack) -> Started:
    return _ours(place, stack, signed=False)


def ours_signed(place: Place, stack: contextlib.ExitStack) -> Started:
    return _ours(place, stack, signed=True)


def messages(started: Started, path: str, body: bytes) -> list[Message]:
    """What the load sends to the contender in turn: signed ones differ in length and signature,
    and in the ID of the call that an SDK gives each, as those of a client within a second do."""
    if not started.signed:
        return [Message(request_headers(started, path, body), body)]
    bodies = [body + b" " * number for number in range(SIGNED_MESSAGES)]
    return [
        Message(
            {
                "User-Agent": SDK,
                **request_headers(started, path, each),
                "amz-sdk-invocation-id": str(uuid.uuid4()),
                "amz-sdk-request": "attempt=1; max=2",
            },
            each,
        )
        for each in bodies
    ]


def request_headers(started: Started, path: str, body: bytes) -> dict[str, str]:
    """What the contender wants; SigV4 holds for five minutes, which is longer than one row."""
    headers = {"Content-Type": "application/json", **started.headers}
    if not started.signed:
        return headers
    request = AWSRequest(
        "POST", f"http://127.0.0.1:{started.port}{path}", data=body, headers=headers
    )
    SigV4Auth(
        Credentials(KEY.access_key_id, KEY.secret_access_key), "sagemaker", "us-east-1"
    ).add_auth(request)
    return {name: request.headers[name] for name in ("X-Amz-Date", "Authorization", *headers)}


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
  server one 127.0.0.1:{place.plain}
backend streamed
  balance leastconn
  server one 127.0.0.1:{place.streamed}
"""
    )
    process = stack.enter_context(
        process_group(["haproxy", "-db", "-f", str(configuration)], place.folder / "haproxy.log")
    )
    wait_ready(port, "/invocations", process, CHAT)
    return Started(process, port, "/invocations", "/stream")


def _installed(name: str, requirements: list[str]) -> Path:
    """The bin folder of a virtual environment with these packages, made once."""
    venv = VENVS / name
    marker = venv / ".installed"
    if not marker.exists():
        VENVS.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(VENVS).free < FREE_BYTES:
            raise Skipped(f"not installed: less than {FREE_BYTES >> 30} GiB are free in {VENVS}")
        print(f"{name}: pip install {' '.join(requirements)}, once", flush=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
            subprocess.run(
                [str(venv / "bin/pip"), "install", "--quiet", *requirements],
                check=True,
                timeout=INSTALL_S,
            )
        except (subprocess.SubprocessError, OSError) as error:
            raise Skipped(f"pip install {' '.join(requirements)} failed: {error}") from error
        marker.touch()
    return venv / "bin"


def version(contender: str) -> str:
    """As the benchmark has it here; "" = not installed."""
    if contender == "haproxy" and shutil.which("haproxy"):
        return subprocess.run(
            ["haproxy", "-v"], capture_output=True, text=True, check=True
        ).stdout.split()[2]
    name = {"ray-serve": "ray"}.get(contender, contender)
    for found in VENVS.glob(f"{name}/lib/*/site-packages/{name.replace('-', '_')}-*.dist-info"):
        return found.name.removesuffix(".dist-info").rpartition("-")[2]
    return ""


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
                *("--worker-urls", f"http://127.0.0.1:{place.plain}"),
                *("--host", "127.0.0.1", "--port", str(port), "--policy", policy),
                *("--prometheus-port", str(free_port()), "--log-level", "error"),
            ],
            place.folder / f"{package}.log",
        )
    )
    wait_ready(port, "/v1/chat/completions", process, CHAT)
    return Started(process, port, "/v1/chat/completions", None)


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
      api_base: http://127.0.0.1:{place.plain}/v1
      api_key: sk-upstream
general_settings:
  master_key: sk-bench
"""
    )
    process = stack.enter_context(
        process_group(
            [
                *(str(bin_folder / "python"), str(bin_folder / "litellm")),
                *("--config", str(configuration)),
                *("--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"),
            ],
            place.folder / "litellm.log",
            env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"},
        )
    )
    wait_ready(port, "/v1/chat/completions", process, CHAT)
    headers = {"Authorization": "Bearer sk-bench"}
    return Started(process, port, "/v1/chat/completions", None, headers)


def ray_serve(place: Place, stack: contextlib.ExitStack) -> Started:
    bin_folder = _installed("ray", ["ray[serve]"])
    port = free_port()
    application = place.folder / "ray_bench.py"
    application.write_text(
        f"""import time
import uuid
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

quiet = {{"enable_access_log": False, "log_level": "ERROR"}}

@serve.deployment(max_ongoing_requests=1024, logging_config=quiet)
class Echo:
    async def __call__(self, request: Request):
        await request.body()
        return Response({json.dumps(ANSWER)!r}, media_type="application/json")

ray.init(num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
serve.start(http_options={{"host": "127.0.0.1", "port": {port}}}, logging_config=quiet)
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
    # Ray's own daemons leave the process group: only Ray ends them, when it is asked to.
    stack.callback(_end_politely, process)
    wait_ready(port, "/", process, CHAT)
    return Started(process, port, "/", None)


def _end_politely(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)


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
