"""From a step of load to the decision, and to the new instance's first answer.

    ./run bench detect [--rounds 1] [--modes standard,high_resolution,fast]
                       [--paths containerd,cached] [--image demo|small] [--short] [--json FILE]

A real endpoint of the local fleet with the demo's image and model, on a 1 Gbit/s link (`--image
small`: the tests' Python server of 10 MB, which answers after a second). The load is a step from
nothing to six concurrent requests, all the time, by unmodified boto3 clients. Modes: `standard`
(60-second InvocationsPerInstance), `high_resolution` (10-second concurrency, decided as AWS does)
and `fast` (ours). The decision's time is the StartTime of the scaling activity; the first answer is
the gateway's, from the timeline. Between the steps the endpoint is scaled back and rests for a
whole period of the metric; every step but the first begins 1 to 2 s after a period has begun, which
is about the longest wait for both kinds of alarm.

A round is one step for each mode and path, and two more for `fast` with the cache: some twenty
minutes, 10 of them for `standard`, whose alarm takes 3 whole minutes of load.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from rich.console import Console

from demo.__main__ import machine, publish, wait_for_cache, write_config
from demo.image import DemoAssets, prepare_assets
from demo.registry import running_counted_registry
from demo.serving import ENDPOINT, WAIT_S, Client, Server
from tests.fixtures.s3 import running_s3
from tests.fixtures.server_image import python_server_image
from zeropull import __version__

REPOSITORY = Path(__file__).resolve().parents[1]
LINK_BITS_PER_S = 1_000_000_000
CONCURRENCY = 6
MODES = ("standard", "high_resolution", "fast")
PATHS = ("containerd", "cached")
RESOURCE = {
    "ServiceNamespace": "sagemaker",
    "ResourceId": f"endpoint/{ENDPOINT}/variant/main",
    "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
}
# No load for so long before a step: a whole period of the metric, so that the alarm's three periods
# cannot begin with the load of the last step; for `fast` the minute whose mean it looks at.
CALM_PERIOD_S = {"fast": 60, "high_resolution": 10, "standard": 60}
STEPS = {("fast", "cached"): 3}
_METRIC = {
    "fast": ("SageMakerVariantConcurrentRequestsPerModelHighResolution", 2.0),
    "high_resolution": ("SageMakerVariantConcurrentRequestsPerModelHighResolution", 2.0),
    "standard": ("SageMakerVariantInvocationsPerInstance", 60.0),
}
console = Console()


@contextlib.contextmanager
def _load(concurrency: int, attributes: dict[str, str]) -> Iterator[float]:
    """Requests without a pause from so many clients; yields when the step began."""
    stop = threading.Event()
    body = json.dumps({"inputs": ["a step of load"] * 8}).encode()

    # Made before the step: a boto3 client takes longer to make than the fast mode to decide.
    clients = [
        boto3.client("sagemaker-runtime", config=Config(read_timeout=70))
        for _ in range(concurrency)
    ]

    def work(runtime: Any) -> None:
        while not stop.is_set():
            with contextlib.suppress(Exception):
                runtime.invoke_endpoint(
                    EndpointName=ENDPOINT, ContentType="application/json", Body=body, **attributes
                )["Body"].read()

    threads = [threading.Thread(target=work, args=[runtime]) for runtime in clients]
    began_s = time.time()
    for thread in threads:
        thread.start()
    try:
        yield began_s
    finally:
        stop.set()
        for thread in threads:
            thread.join(80)


def measure(
    server: Server,
    client: Client,
    mode: str,
    path: str,
    attributes: dict[str, str],
    *,
    loaded_before: bool,
) -> tuple[float, float]:
    """(seconds to the decision, seconds to the new instance's first answer)."""
    autoscaling = boto3.client("application-autoscaling")
    client.choose_path(path)
    known = {launch["copy_id"] for launch in server.timeline()}
    if loaded_before:
        # Steps begin at any part of a second, as users' do: what is counted by the second shows.
        calm_s = _calm_s(mode) + random.random()
        with console.status(f"{mode}: {calm_s:.0f} s without load"):
            threading.Event().wait(calm_s)
    metric, target = _METRIC[mode]
    autoscaling.register_scalable_target(
        **RESOURCE,
        MinCapacity=1,
        MaxCapacity=2,
        Tags={"zeropull:scaling": "fast" if mode == "fast" else "aws"},
    )
    autoscaling.put_scaling_policy(
        **RESOURCE,
        PolicyName=f"bench-{mode}-{path}-{time.time_ns()}",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={
            "TargetValue": target,
            "PredefinedMetricSpecification": {"PredefinedMetricType": metric},
        },
    )
    seen_s = time.time()
    try:
        with _load(CONCURRENCY, attributes) as began_s:
            decided_s = _wait(f"{mode}: a decision", lambda: _decided(autoscaling, seen_s))
            launch = _wait(f"{mode}: an answer", lambda: _answered(server, known), 1.0)
    finally:
        autoscaling.deregister_scalable_target(**RESOURCE)
    client.wait_in_service()
    client.scale(1)
    client.wait_in_service()
    return decided_s - began_s, launch["first_response_s"] - began_s


def _calm_s(mode: str) -> float:
    """Until a whole period has gone by without load."""
    period_s = CALM_PERIOD_S[mode]
    return period_s - time.time() % period_s + period_s + 1


def _decided(autoscaling: Any, since_s: float) -> float | None:
    found = autoscaling.describe_scaling_activities(**RESOURCE)["ScalingActivities"]
    times = [one["StartTime"].timestamp() for one in found]
    return min((at for at in times if at >= since_s), default=None)


def _answered(server: Server, known: set[str]) -> dict[str, Any] | None:
    new = [one for one in server.timeline() if one["copy_id"] not in known]
    return next((one for one in new if one.get("first_response_s")), None)


def _wait(what: str, check: Any, every_s: float = 0.1) -> Any:
    deadline = time.monotonic() + WAIT_S
    with console.status(what):
        while time.monotonic() < deadline:
            if found := check():
                return found
            threading.Event().wait(every_s)
    raise SystemExit(f"{what}: not within {WAIT_S} s")


def _small_assets(scratch: Path) -> DemoAssets:
    archive = scratch / "model.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(__file__, "code/readme.py")
    return DemoAssets(python_server_image(), archive)


def run(options: argparse.Namespace) -> dict[str, Any]:
    is_small = options.image == "small"
    results: dict[str, Any] = {
        mode: {"decision_s": [], "first_response_s": {path: [] for path in options.paths}}
        for mode in options.modes
    }
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zeropull-bench-")))
        kept = scratch / "kept" if is_small else REPOSITORY / "build/demo"
        registry = stack.enter_context(running_counted_registry(kept / "registry", scratch))
        store = stack.enter_context(running_s3(folder=kept / "buckets"))
        assets = _small_assets(scratch) if is_small else prepare_assets(console)
        attributes = {"CustomAttributes": "delay=1"} if is_small else {}
        image, model_url = publish(assets, registry, store)
        state_dir = scratch / "state"
        server = Server(state_dir, write_config(scratch, state_dir, store, LINK_BITS_PER_S))
        stack.callback(server.stop)
        client = Client(server.start())
        client.deploy(image, model_url)
        wait_for_cache(server)
        steps = [
            (number, mode, path)
            for number in range(1, options.rounds + 1)
            for mode in options.modes
            for path in options.paths
            for _ in range(STEPS.get((mode, path), 1))
            if not (options.short and (mode, path) == ("standard", "containerd"))
        ]
        for step, (number, mode, path) in enumerate(steps):
            decision_s, answer_s = measure(
                server, client, mode, path, attributes, loaded_before=step > 0
            )
            results[mode]["decision_s"].append(round(decision_s, 2))
            results[mode]["first_response_s"][path].append(round(answer_s, 2))
            console.print(
                f"round {number}, {mode}, {path}: decided after {decision_s:.2f} s, "
                f"first answer of the new instance after {answer_s:.1f} s"
            )
        client.delete()
    return results


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench detect", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--modes", default=",".join(MODES), help="of " + ", ".join(MODES))
    parser.add_argument("--short", action="store_true", help="standard only with the cache")
    parser.add_argument("--image", choices=["demo", "small"], default="demo")
    parser.add_argument("--paths", default=",".join(PATHS), help="of " + ", ".join(PATHS))
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    options.modes = options.modes.split(",")
    options.paths = options.paths.split(",")
    for given, known in ((options.modes, MODES), (options.paths, PATHS)):
        if unknown := set(given) - set(known):
            raise SystemExit(f"unknown {', '.join(unknown)}: choose of {', '.join(known)}")
    if os.geteuid() != 0:
        raise SystemExit("this benchmark makes network namespaces and mounts: run it as root")
    console.print(
        f"zeropull {__version__}; {machine()}; image {options.image}; "
        f"a step to {CONCURRENCY} concurrent requests"
    )
    results = run(options)
    decisions = {mode: statistics.median(found["decision_s"]) for mode, found in results.items()}
    for mode, found in results.items():
        answers = ", ".join(
            f"{path} {statistics.median(seconds):.1f} s"
            for path, seconds in found["first_response_s"].items()
            if seconds
        )
        faster = ""
        if mode != "standard" and "standard" in decisions:
            faster = f" ({decisions['standard'] / decisions[mode]:.1f} x faster than standard)"
        console.print(
            f"{mode}: decision {decisions[mode]:.2f} s{faster}, first answer: {answers} (medians)"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0
