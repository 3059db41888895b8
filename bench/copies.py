"""Another copy: on an instance that runs, on a new one, from zero; and how long placing takes.

    ./run bench copies [--rounds 3] [--image demo|small] [--json FILE]

The demo's image and model as an inference component of a real endpoint on the local fleet, on a
1 Gbit/s link (`--image small`: the tests' Python server with 200 MB beside it, and a model of
100 MB, neither of which can be compressed). `second_copy`: image and model stages of one more copy
on a running instance, and the bytes that it took from the registry and the model store.
`new_instance`: a copy that fits nowhere, with the image cached and the way a plain containerd node
does it. `from_zero`: a request held while the first copy starts, against that container's own start
(start and health stages). Figures are medians of the rounds, the time above the container's start
also the worst of them; the plain node is measured once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from rich.console import Console

from bench.copies_table import table
from bench.placing import placement
from demo.__main__ import machine, publish, wait_for_cache, write_config
from demo.image import DemoAssets, prepare_assets
from demo.registry import running_counted_registry
from demo.serving import ENDPOINT, INSTANCE_TYPE, WAIT_S, Client, Server
from tests.fixtures.images import Entry, make_image, make_layer
from tests.fixtures.s3 import running_s3
from tests.fixtures.server_image import python_server_image
from zeropull import __version__

REPOSITORY = Path(__file__).resolve().parents[1]
LINK_BITS_PER_S = 1_000_000_000
COMPONENT = "embedder"
ROLE = "arn:aws:iam::000000000000:role/bench"
IMAGE_BYTES, MODEL_BYTES = 200_000_000, 100_000_000  # of --image small
MEMORY_MB = 7000  # two copies fit on an instance of 16 GiB
STAGES = ("detect", "provision", "image", "model", "start", "health", "route")
PLAIN_ROUNDS = 1  # most of a minute each, of which the link is nearly all
RESOURCE = {
    "ServiceNamespace": "sagemaker",
    "ResourceId": f"inference-component/{COMPONENT}",
    "ScalableDimension": "sagemaker:inference-component:DesiredCopyCount",
}
console = Console()


class Bench:
    """One endpoint with one component, and its user."""

    def __init__(self, server: Server, client: Client) -> None:
        self.server = server
        self.client = client
        self.sagemaker = client.sagemaker

    def deploy(self, image: str, model_url: str) -> None:
        self.sagemaker.create_endpoint_config(
            EndpointConfigName=ENDPOINT,
            ExecutionRoleArn=ROLE,
            ProductionVariants=[
                {
                    "VariantName": "main",
                    "InstanceType": INSTANCE_TYPE,
                    "InitialInstanceCount": 1,
                    "ManagedInstanceScaling": {
                        "Status": "ENABLED",
                        "MinInstanceCount": 1,
                        "MaxInstanceCount": 3,
                    },
                }
            ],
        )
        self.sagemaker.create_endpoint(EndpointName=ENDPOINT, EndpointConfigName=ENDPOINT)
        self.client.wait_in_service()
        self.sagemaker.create_inference_component(
            InferenceComponentName=COMPONENT,
            EndpointName=ENDPOINT,
            VariantName="main",
            Specification={
                "Container": {"Image": image, "ArtifactUrl": model_url},
                "ComputeResourceRequirements": {
                    "NumberOfCpuCoresRequired": 0.5,
                    "MinMemoryRequiredInMb": MEMORY_MB,
                },
                "DataCacheConfig": {"EnableCaching": True},
            },
            RuntimeConfig={"CopyCount": 1},
        )
        self.wait_for(1)

    def scale(self, copies: int) -> list[dict[str, Any]]:
        """To so many copies; the launches that this took."""
        known = {launch["copy_id"] for launch in self.server.timeline()}
        self.sagemaker.update_inference_component_runtime_config(
            InferenceComponentName=COMPONENT, DesiredRuntimeConfig={"CopyCount": copies}
        )
        self.wait_for(copies)
        return [one for one in self.server.timeline() if one["copy_id"] not in known]

    def wait_for(self, copies: int) -> None:
        def serves() -> bool:
            found = self.sagemaker.describe_inference_component(InferenceComponentName=COMPONENT)
            if found["InferenceComponentStatus"] == "Failed":
                raise SystemExit(found["FailureReason"])
            return bool(
                found["InferenceComponentStatus"] == "InService"
                and found["RuntimeConfig"]["CurrentCopyCount"] == copies
            )

        _wait(f"{copies} copies", serves)

    def wait_for_instances(self, count: int) -> None:
        def has() -> bool:
            endpoints = json.loads(self.server.cli("status", "--json"))["endpoints"]
            return bool(len(endpoints[0]["instances"]) == count)

        _wait(f"{count} instances", has)

    def second_copy(self) -> dict[str, Any]:
        launch = self.scale(2)[0]
        assert not launch["new_instance"]
        self.scale(1)
        return _facts(launch)

    def new_instance(self, path: str) -> dict[str, Any]:
        self.client.choose_path(path)
        self.scale(2)
        launch = self.scale(3)[0]
        assert launch["new_instance"]
        facts = _facts(launch)
        self.scale(1)
        self.wait_for_instances(1)
        self.client.choose_path("cached")
        return facts

    def from_zero(self) -> dict[str, Any]:
        autoscaling = boto3.client("application-autoscaling")
        autoscaling.register_scalable_target(
            **RESOURCE, MinCapacity=0, MaxCapacity=3, Tags={"zeropull:scaling": "fast"}
        )
        self.scale(0)
        known = {launch["copy_id"] for launch in self.server.timeline()}
        runtime = boto3.client("sagemaker-runtime", config=Config(read_timeout=70))
        body = json.dumps({"inputs": ["the first request"]}).encode()
        began_s = time.monotonic()
        runtime.invoke_endpoint(
            EndpointName=ENDPOINT,
            InferenceComponentName=COMPONENT,
            ContentType="application/json",
            Body=body,
        )["Body"].read()
        answer_s = time.monotonic() - began_s
        autoscaling.deregister_scalable_target(**RESOURCE)
        self.wait_for(1)
        launch = next(one for one in self.server.timeline() if one["copy_id"] not in known)
        stages = _facts(launch)["stages_s"]
        start_s = round(stages["start"] + stages["health"], 3)
        return {
            "answer_s": round(answer_s, 3),
            "container_start_s": start_s,
            "above_start_s": round(answer_s - start_s, 3),
            "stages_s": stages,
        }


def _facts(launch: dict[str, Any]) -> dict[str, Any]:
    stages = {stage["stage"]: stage for stage in launch["stages"]}
    return {
        "stages_s": {
            name: round(stages[name]["ended_s"] - stages[name]["began_s"], 3)
            for name in STAGES
            if name in stages and stages[name]["ended_s"] is not None
        },
        "total_s": round(launch["ready_s"] - launch["began_s"], 3),
        "registry_bytes": stages["image"]["bytes_by_source"].get("registry", 0),
        "model_store_bytes": stages["model"]["bytes_by_source"].get("model_store", 0),
    }


def _wait(what: str, check: Any) -> None:
    deadline = time.monotonic() + WAIT_S
    with console.status(what):
        while time.monotonic() < deadline:
            if check():
                return
            threading.Event().wait(0.1)
    raise SystemExit(f"{what}: not within {WAIT_S} s")


def _median(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Of every number, one level of dictionaries deep."""
    return {
        key: _median([each[key] for each in rounds])
        if isinstance(value, dict)
        else round(statistics.median(each[key] for each in rounds), 3)
        for key, value in rounds[0].items()
        if all(key in each for each in rounds)
    }


def _small_assets(scratch: Path) -> DemoAssets:
    server = python_server_image()
    assert isinstance(server.config.content, bytes)
    ballast = make_layer([Entry("srv/ballast.bin", os.urandom(IMAGE_BYTES))])
    image = make_image([*server.layers, ballast], json.loads(server.config.content)["config"])
    weights = scratch / "weights.bin"
    weights.write_bytes(os.urandom(MODEL_BYTES))
    with tarfile.open(scratch / "model.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(weights, "weights.bin")
    return DemoAssets(image, scratch / "model.tar.gz")


def run(rounds: int, which: str) -> dict[str, Any]:
    found: dict[str, list[dict[str, Any]]] = {
        "second_copy": [], "cached": [], "containerd": [], "from_zero": [],
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zeropull-bench-")))
        kept = REPOSITORY / "build/demo" if which == "demo" else scratch / "kept"
        (kept / "buckets").mkdir(parents=True, exist_ok=True)
        assets = prepare_assets(console) if which == "demo" else _small_assets(scratch)
        registry = stack.enter_context(running_counted_registry(kept / "registry", scratch))
        store = stack.enter_context(running_s3(folder=kept / "buckets"))
        image, model_url = publish(assets, registry, store)
        state_dir = scratch / "state"
        config = write_config(scratch, state_dir, store, LINK_BITS_PER_S)
        config.write_text(config.read_text() + "\n[endpoints]\nidle_release_s = 1\n")
        server = Server(state_dir, config)
        stack.callback(server.stop)
        bench = Bench(server, Client(server.start()))
        bench.deploy(image, model_url)
        wait_for_cache(server)
        for _ in range(rounds):
            found["second_copy"].append(bench.second_copy())
            found["cached"].append(bench.new_instance("cached"))
            found["from_zero"].append(bench.from_zero())
        # Last: the instance that stays afterwards has the image as a plain containerd node has it.
        for _ in range(PLAIN_ROUNDS):
            found["containerd"].append(bench.new_instance("containerd"))
        for name, results in found.items():
            console.print(f"{name}: {results}")
        bench.client.sagemaker.delete_endpoint(EndpointName=ENDPOINT)
    return {
        "second_copy": _median(found["second_copy"]),
        "new_instance": {path: _median(found[path]) for path in ("cached", "containerd")},
        "from_zero": {
            **_median(found["from_zero"]),
            "worst_above_start_s": max(each["above_start_s"] for each in found["from_zero"]),
        },
        "placement": placement(),
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench copies", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--image", choices=["demo", "small"], default="demo")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    if os.geteuid() != 0:
        raise SystemExit("this benchmark makes network namespaces and mounts: run it as root")
    console.print(
        f"zeropull {__version__}; {machine()}; image {options.image}; {options.rounds} rounds, "
        f"{PLAIN_ROUNDS} of the plain node; links of {LINK_BITS_PER_S / 1e9:g} Gbit/s"
    )
    results = run(options.rounds, options.image)
    console.print_json(json.dumps(results))
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0
