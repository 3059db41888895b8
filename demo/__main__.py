"""`./run demo`: one endpoint, and one more instance four ways on equal links.

Everything that a user would do is done with unmodified boto3; the figures come from
`zeropull timeline --json` and from the registry's own log.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from demo.image import DemoAssets, prepare_assets
from demo.launches import PATHS, STAGES, Launch, median_of, read_launch
from demo.leftovers import find_leftovers
from demo.registry import CountedRegistry, running_counted_registry
from demo.serving import ENDPOINT, WAIT_S, Client, Server
from tests.fixtures.images import push_image
from tests.fixtures.s3 import Store, running_s3
from zeropull import __version__

BUCKET = "models"
TCP_GOODPUT = 0.957  # what a rate-limited link leaves for TCP payload
REPOSITORY = Path(__file__).resolve().parents[1]
console = Console()


def measure_launch(
    server: Server, client: Client, registry: CountedRegistry, path: str, known: set[str]
) -> Launch:
    """Scale from one instance to two along `path`, and back. `known`: the copies so far; the new
    one is added."""
    settle(server)
    client.choose_path(path)
    before = registry.served()
    client.scale(2)
    record: dict[str, Any] | None = None
    began_s = time.monotonic()
    with client.invoking(), console.status(f"{path}: scaling out") as status:
        while time.monotonic() - began_s < WAIT_S:
            # A look through the API costs a thousandth of what starting the command line does, and
            # this machine has the launch to do.
            if client.is_in_service():
                record = next(
                    (one for one in server.timeline() if one["copy_id"] not in known), None
                )
                if record and record.get("ready_s") and record.get("first_response_s"):
                    break
            status.update(f"{path}: scaling out, {time.monotonic() - began_s:.0f} s")
            threading.Event().wait(0.25)
        else:
            raise SystemExit(f"the {path} launch did not answer within {WAIT_S} s: {record}")
    after = registry.served()
    known.add(record["copy_id"])
    launch = read_launch(path, record, (after[0] - before[0], after[1] - before[1]))
    client.wait_in_service()
    client.scale(1)
    client.wait_in_service()
    return launch


def share_no_disk(server: Server) -> Client:
    """Start again with instances that get nothing of this machine's disk; the first one goes on."""
    with console.status("from now on, the image cache crosses each new instance's link"):
        server.let_go()
        text = server.config.read_text()
        server.config.write_text(text.replace("[fleet]\n", '[fleet]\ndelivery = "network"\n'))
        client = Client(server.start())
        client.wait_in_service()
    return client


def settle(server: Server) -> None:
    """Until the last launch's gigabytes are deleted and what was written is on the disk: the next
    one is measured on a disk that is idle, as a new machine's is."""
    instances = server.state_dir / "instances"
    with console.status("the instance is deleted"):
        deadline = time.monotonic() + WAIT_S
        while len(list(instances.iterdir())) > 1 and time.monotonic() < deadline:
            threading.Event().wait(0.3)
        os.sync()


def run(options: argparse.Namespace) -> dict[str, Any]:
    assets = prepare_assets(console)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zeropull-demo-")))
        registry = stack.enter_context(
            running_counted_registry(REPOSITORY / "build/demo/registry", scratch)
        )
        store = stack.enter_context(running_s3(folder=REPOSITORY / "build/demo/buckets"))
        image, model_url = publish(assets, registry, store)
        state_dir = scratch / "state"
        config = write_config(scratch, state_dir, store, options.link)
        server = Server(state_dir, config)
        stack.callback(server.stop)
        client = Client(server.start())
        console.print(
            f"zeropull {__version__} serves on {os.environ['AWS_ENDPOINT_URL_SAGEMAKER']}"
        )
        return conduct(options, assets, registry, server, client, image, model_url)


def conduct(
    options: argparse.Namespace,
    assets: DemoAssets,
    registry: CountedRegistry,
    server: Server,
    client: Client,
    image: str,
    model_url: str,
) -> dict[str, Any]:
    """The demo proper: deploy, invoke, launch four ways in rounds, report, delete, prove."""
    began_s = time.monotonic()
    with console.status("creating the endpoint: the first instance pulls and feeds the cache"):
        before = registry.served()
        client.deploy(image, model_url)
        served = registry.served()[1] - before[1]
    console.print(
        f"endpoint in service after {time.monotonic() - began_s:.1f} s; the registry served "
        f"{served:,} B of an image of {assets.image.compressed_bytes:,} B: each layer once"
    )
    show_answer(client.invoke())
    wait_for_cache(server)
    launches: dict[str, list[Launch]] = {path: [] for path in PATHS}
    known = {launch["copy_id"] for launch in server.timeline()}
    plan = [(n, path) for n in range(1, options.rounds + 1) for path in PATHS if path != "network"]
    plan += [(n, "network") for n in range(1, options.rounds + 1)]
    for number, path in plan:
        if (number, path) == (1, "network"):
            client = share_no_disk(server)
        launch = measure_launch(server, client, registry, path, known)
        launches[path].append(launch)
        console.print(
            f"round {number}, {path:10} {launch.total_s:6.1f} s; {launch.evidence}; "
            f"registry's own count: {launch.registry_requests} requests, "
            f"{launch.registry_bytes:,} B"
        )
    medians = {path: median_of(launches[path]) for path in PATHS}
    show_table(medians, assets, options)
    if options.html:
        server.cli("timeline", ENDPOINT, "--html", str(options.html.resolve()))
        console.print(f"every launch side by side: {options.html}")
    with console.status("deleting everything"):
        run_dir = Path(json.loads(server.cli("status", "--json"))["run_dir"])
        client.delete()
        server.stop()
    left = find_leftovers(server.state_dir, run_dir)
    console.print(
        "nothing is left behind" if not left else "[red]left behind:[/]\n" + "\n".join(left)
    )
    return {
        "machine": machine(),
        "zeropull": __version__,
        "image": {
            "compressed_bytes": assets.image.compressed_bytes,
            "layers": len(assets.image.layers),
        },
        "model": {"bytes": assets.model_archive.stat().st_size},
        "link_bits_per_s": options.link,
        "launches": medians,
        "left_behind": left,
    }


def publish(assets: DemoAssets, registry: CountedRegistry, store: Store) -> tuple[str, str]:
    """Push the image and upload the model; what is there already is not sent again."""
    with console.status("pushing the image and uploading the model"):
        push_image(registry.address, "demo/embedder", "1", assets.image)
        client = store.client()
        if BUCKET not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=BUCKET)
        key = f"embedder-{assets.model_archive.stat().st_size}/model.tar.gz"
        listed = client.list_objects_v2(Bucket=BUCKET, Prefix=key)
        if not listed.get("KeyCount"):
            client.upload_file(str(assets.model_archive), BUCKET, key)
    return f"{registry.address}/demo/embedder:1", f"s3://{BUCKET}/{key}"


def write_config(scratch: Path, state_dir: Path, store: Store, link_bits_per_s: int) -> Path:
    path = scratch / "zeropull.toml"
    path.write_text(f"""
[serve]
state_dir = "{state_dir}"
port = 0

[fleet]
simulate_accelerators = true
limit_network = true
network_bits_per_s = {link_bits_per_s}

[buckets.{BUCKET}]
endpoint = "{store.direct_endpoint}"
region = "{store.region}"
access_key_id = "{store.access_key_id}"
secret_access_key = "{store.secret_access_key}"
""")
    return path


def wait_for_cache(server: Server) -> None:
    """The cache is built beside the serving; a launch before it is ready would pull."""
    with console.status("the image cache is being published"):
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            for endpoint in json.loads(server.cli("status", "--json"))["endpoints"]:
                if endpoint["name"] == ENDPOINT and endpoint["image_cache"]["generation"]:
                    return
            threading.Event().wait(0.3)
    raise SystemExit("the image cache was not published; see `zeropull status`")


def show_answer(answer: Any) -> None:
    text = json.dumps(answer)
    console.print(f"answer: {text[:120]}{'…' if len(text) > 120 else ''}")


def show_table(medians: dict[str, Any], assets: DemoAssets, options: argparse.Namespace) -> None:
    table = Table(title=f"one more instance, {options.rounds} rounds, medians")
    table.add_column("")
    for path in PATHS:
        table.add_column(path, justify="right")
    for stage in STAGES:
        table.add_row(f"{stage} s", *(f"{medians[p]['stages_s'][stage]:.2f}" for p in PATHS))
    table.add_row("total s", *(f"{medians[p]['total_s']:.2f}" for p in PATHS))
    table.add_row("first response s", *(f"{medians[p]['first_response_s']:.2f}" for p in PATHS))
    table.add_row(
        "image cache over the network, B",
        *(f"{medians[p]['network_cache_bytes']:,}" for p in PATHS),
    )
    table.add_row("registry's own count, B", *(f"{medians[p]['registry_bytes']:,}" for p in PATHS))
    table.add_row(
        "layers from the cache",
        *(f"{medians[p]['layers_from_cache']}/{medians[p]['layers_total']}" for p in PATHS),
    )
    slowest = medians["containerd"]["total_s"]
    table.add_row(
        "against containerd", *(f"{medians[p]['total_s'] / slowest:.2f} x" for p in PATHS)
    )
    console.print(table)
    cached = medians["cached"]
    if cached["stages_s"]["model"]:
        rate = cached["model_bytes"] * 8 / cached["stages_s"]["model"]
        share = rate / (options.link * TCP_GOODPUT)
        console.print(
            f"cached: the model came at {rate / 1e6:.0f} Mbit/s, {share:.0%} of what the link of "
            f"{options.link / 1e6:.0f} Mbit/s carries"
        )
    console.print(
        f"image {assets.image.compressed_bytes / 1e9:.2f} GB compressed in "
        f"{len(assets.image.layers)} layers, model {assets.model_archive.stat().st_size / 1e6:.0f} "
        f"MB; {machine()}"
    )


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}"


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does, so that everything is taken down."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit("interrupted; everything was taken down") from None


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="launches of each kind (default 3)")
    parser.add_argument(
        "--link", type=int, default=1_000_000_000, metavar="BITS_PER_S", help="default 1 Gbit/s"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", default=REPOSITORY / "build/demo/timeline.html"
    )
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("the demo makes network namespaces and mounts: run it as root")
    free_bytes = shutil.disk_usage(REPOSITORY).free
    if free_bytes < 14e9:
        raise SystemExit(f"the demo needs 14 GB of disk, {free_bytes / 1e9:.1f} GB are free here")
    for file in (options.json, options.html):
        if file is not None:  # told now, not after minutes
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise SystemExit(f"{file} cannot be written: {error.strerror}") from error
    with _interrupts():
        result = run(options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["left_behind"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
